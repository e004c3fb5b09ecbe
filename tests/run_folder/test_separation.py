"""A new run's folder is its own; one that is there already goes on where it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from artkv.config import Config
from artkv.errors import UserError
from artkv.run_folder.separation import check_is_apart


@pytest.fixture
def placed(settings: Callable[..., Config], tmp_path: Path) -> Callable[[str], Config]:
    """The tiny config, with a folder of the test's for the pictures, the features and the run."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)

    def make(output_dir: str) -> Config:
        return settings(
            run={"output_dir": tmp_path / output_dir},
            dataset={"image_root": images},
            frozen={"feature_cache": tmp_path / "features"},
        )

    return make


@pytest.mark.parametrize(
    ("output_dir", "told"),
    [
        ("data/images", "is dataset.image_root"),
        ("data/images/run", "is inside dataset.image_root"),
        ("data/../data/images/run", "is inside dataset.image_root"),
        ("features", "is frozen.feature_cache"),
        ("features/run", "is inside frozen.feature_cache"),
    ],
)
def test_a_folder_of_what_is_read_is_refused(placed: Callable[[str], Config], output_dir: str, told: str) -> None:
    with pytest.raises(UserError, match=f"{told} = .* would be mixed with those; give it a folder of its own"):
        check_is_apart(placed(output_dir))


def test_a_link_into_the_pictures_is_seen_through(placed: Callable[[str], Config], tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "data" / "images")
    with pytest.raises(UserError, match="is dataset.image_root"):
        check_is_apart(placed("run"))


def test_files_of_others_are_no_place_for_a_new_run(placed: Callable[[str], Config], tmp_path: Path) -> None:
    config = placed("run")
    check_is_apart(config)  # there is no folder yet
    run_dir = config.run.output_dir
    run_dir.mkdir()
    for name in ("slurm-17.out", "notes.txt", ".hidden", "config.yaml", "my.yaml", "hostfile.3"):
        (run_dir / name).touch()
    (run_dir / "logs").mkdir()
    check_is_apart(config)
    for name in ("thesis.tex", "a", "b", "c"):
        (run_dir / name).touch()
    with pytest.raises(UserError, match="holds a, b, c and 1 more, and no run"):
        check_is_apart(config)
    (run_dir / "status.json").touch()
    check_is_apart(config)  # a run is there, and goes on


def test_folders_of_others_are_no_place_for_a_new_run(placed: Callable[[str], Config], tmp_path: Path) -> None:
    config = placed("run")
    run_dir = config.run.output_dir
    for name in ("photos/a.jpg", "src/deep/a.py", ".git/index"):
        (run_dir / name).parent.mkdir(parents=True)
        (run_dir / name).touch()
    with pytest.raises(UserError, match="holds photos/, src/, and no run, whose files would be mixed with those; give"):
        check_is_apart(config)
    (run_dir / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds thesis.tex, photos/, src/, and no run"):
        check_is_apart(config)
    (run_dir / "metrics.jsonl").touch()
    check_is_apart(config)  # a run is there, and goes on


def test_folders_of_a_job_and_of_the_runs_own_world_may_be_there(
    placed: Callable[[str], Config], tmp_path: Path
) -> None:
    config = placed(".")  # data/images and features lie in it
    for name in (
        "logs/rank_00001.log", "logs/events.out.tfevents.1", "wandb/offline-run/run.wandb", "lost+found/x",
        "slurm_output/1/train.out", "scripts/start.sh", "control/metrics.jsonl", "control/events.out.tfevents.7",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    check_is_apart(config)
    (tmp_path / "data" / "other.csv").touch()  # beside what is read
    check_is_apart(config)
    (tmp_path / "more").symlink_to(tmp_path / "data" / "images")
    check_is_apart(config)
    (tmp_path / "scripts" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds scripts/, and no run"):
        check_is_apart(config)


def test_a_folder_of_very_many_files_is_no_jobs(placed: Callable[[str], Config]) -> None:
    config = placed("run")
    (config.run.output_dir / "labels").mkdir(parents=True)
    for number in range(1001):
        (config.run.output_dir / "labels" / f"{number}.txt").touch()
    with pytest.raises(UserError, match="holds labels/, and no run"):
        check_is_apart(config)


def test_a_name_of_the_hub_is_no_folder(
    placed: Callable[[str], Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = placed("Salesforce/run")
    check_is_apart(config.model_copy(update={"model": config.model.model_copy(update={"blip2": "Salesforce"})}))
