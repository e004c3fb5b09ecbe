"""Trackers beside TensorBoard: found missing at the start, left out where they fail, and told of once."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artkv.config import load_config
from artkv.errors import UserError
from artkv.monitoring import trackers
from artkv.monitoring.cards import AnsweredQuestion
from artkv.monitoring.run_log import RunLog
from artkv.monitoring.trackers import check_trackers
from artkv.preflight import find_obstacles


class Failing:
    """A tracker that fails at one of its calls, and counts them."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> None:
            self.calls.append(name)
            if name == self.at:
                raise ConnectionError("no server\nat all")

        return call


def whole_run(folder: Path, names: tuple[str, ...]) -> None:
    """Every call of a run's log, in the order of a run."""
    log = RunLog(folder, rank=0, total_steps=2, trackers=names)
    log.config("run: {output_dir: x}\n")
    log.settings({"training.seed": 1}, "train/loss")
    log.train(1, {"loss": 0.5})
    log.shown(1, [AnsweredQuestion(Image.new("RGB", (8, 8)), "q", "a", "p")], np.array([[0.1, 0.2]]))
    log.validation(1, {"exact_match": 0.75})
    log.train(2, {"loss": 0.25})
    log.finished()
    log.close()


@pytest.mark.parametrize(
    "at", ["text", "settings", "scalars", "samples", "histogram", "image", "flush", "finished", "close"]
)
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing(at)
    monkeypatch.setattr(trackers, "_open", lambda *_: failing)
    whole_run(tmp_path, ("wandb", "tensorboard"))
    told = [line for line in capsys.readouterr().err.splitlines() if "run.trackers" in line]
    assert told == [
        "artkv: run.trackers: wandb failed (ConnectionError: no server at all); training goes on without it"
    ]
    assert failing.calls[-1] == at
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert list(tmp_path.glob("events*"))


def test_a_tracker_that_cannot_be_opened_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not logged in")

    monkeypatch.setattr(trackers, "_open", fail)
    whole_run(tmp_path, ("trackio",))
    assert capsys.readouterr().err.count("run.trackers: trackio failed (RuntimeError: not logged in)") == 1
    assert not list(tmp_path.glob("events*"))  # TensorBoard was not asked for


def test_other_ranks_and_no_trackers_write_nothing_of_the_kind(tmp_path: Path) -> None:
    RunLog(tmp_path / "other", rank=1, total_steps=1, trackers=("tensorboard",)).close()
    assert not (tmp_path / "other").exists()
    (tmp_path / "none").mkdir()
    whole_run(tmp_path / "none", ())
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_that_is_missing_is_found_before_the_work(
    name: str, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"run.trackers: {name} is not installed; pip install 'artkv\\[{name}\\]', or leave it out"
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=message):
        check_trackers(["tensorboard", name])
    config = load_config(tiny_world / "config.yaml", [f"run.trackers=[{name}]", f"run.output_dir={tmp_path / 'run'}"])
    assert [found for found in find_obstacles(config) if f"{name} is not installed" in found]


def test_a_folder_of_the_librarys_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B makes one in the working directory, and `python -m artkv` looks there."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="wandb is not installed"):
        check_trackers(["wandb"])


def test_installed_ones_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "trackio.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    check_trackers(["trackio", "tensorboard"])
