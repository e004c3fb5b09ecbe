"""Whether a run may write into a folder: what a full disk, a read-only one, and files of the user's answer."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.run_folder.output_folder import check_is_new, check_no_file_is_in_the_way, check_output_folder
from tests.mounted import Disk


def test_a_folder_of_a_run_and_a_new_one_are_fine(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (run / "metrics.jsonl").symlink_to(tmp_path / "elsewhere" / "metrics.jsonl")
    (run / "best").mkdir()  # a copy, say: it stays, and `mark_best` tells so
    (run / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    check_output_folder(run)
    check_output_folder(tmp_path / "new" / "run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: (run / "logs").write_text(""), "logs is no folder, where a run makes one; move it"),
        (lambda run: (run / "checkpoints").write_text(""), "checkpoints is no folder"),
        (lambda run: (run / "checkpoints").symlink_to("gone"), "is a link to gone, which is not there; mount its disk"),
        (lambda run: (run / "checkpoints" / "latest").mkdir(parents=True), "latest is a folder, where a run writes a"),
        (lambda run: (run / "status.json").mkdir(), "status.json is a folder, where a run writes a file"),
        (lambda run: (run / "metrics.jsonl").mkdir(), "metrics.jsonl is a folder"),
        (lambda run: (run / "metrics.jsonl").symlink_to("/dev/null"), "metrics.jsonl is no regular file"),
        (lambda run: (run / "config.yaml").symlink_to("mine.yaml"), "config.yaml is a link, where a run writes a file"),
    ],
)  # fmt: skip
def test_what_has_a_name_that_a_run_writes_is_told(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        check_output_folder(tmp_path)
    assert f"run.output_dir = {tmp_path}" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file immutable")
def test_metrics_that_nothing_can_be_added_to_are_told(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    if subprocess.run(["chattr", "+a", metrics], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no such attributes")
    check_output_folder(tmp_path)  # what may only be added to is enough
    subprocess.run(["chattr", "-a", "+i", metrics], check=True)
    try:
        with pytest.raises(UserError, match=r"jsonl cannot be written \(Operation not permitted\); give another"):
            check_output_folder(tmp_path)
    finally:
        subprocess.run(["chattr", "-i", metrics], check=True)


def test_a_full_and_a_read_only_disk_are_found_before_the_work(disk: Disk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (disk.folder / "kept").mkdir()
    (run / "checkpoints").symlink_to(disk.folder)
    check_output_folder(run)
    disk.fill()
    for folder in (run, disk.folder / "run"):
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            check_output_folder(folder)
    disk.free()
    disk.read_only()
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"):
        check_output_folder(disk.folder / "kept")


def test_a_file_with_the_name_of_a_checkpoint_to_come_is_told(tmp_path: Path) -> None:
    check_no_file_is_in_the_way(tmp_path, 0)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000005").write_text("")
    check_no_file_is_in_the_way(tmp_path, 5)
    with pytest.raises(UserError, match="step_00000005 is no folder, and has the name of a checkpoint to come; move"):
        check_no_file_is_in_the_way(tmp_path, 4)


def records(folder: Path, *steps: int, kind: str = "train") -> None:
    lines = [json.dumps({"step": step, "time": 1.0, "kind": kind, "loss": 1.0}) + "\n" for step in steps]
    (folder / "metrics.jsonl").write_text("".join(lines))


STATUS = {
    "state": "running", "total_steps": 18, "ranks": 1, "hosts": ["n1"], "job": None, "started": 1.0, "ended": None,
    "error": None,
}  # fmt: skip


def test_a_run_whose_checkpoints_are_away_is_not_begun_anew(tmp_path: Path) -> None:
    """As it says itself, or, where it is of an earlier artkv, as its metrics show."""
    status, config = tmp_path / "status.json", tmp_path / "config.yaml"
    check_is_new(tmp_path, 4)
    # Killed before its first checkpoint: step 4 is logged, and then saved.
    for steps in ((), (2,), (2, 4)):
        records(tmp_path, *steps)
        check_is_new(tmp_path, 4)
    for kind, steps in (("train", (2, 4, 6)), ("validation", (0, 3))):
        records(tmp_path, *steps, kind=kind)
        with pytest.raises(UserError, match="metrics.jsonl goes on to step . and there is no checkpoint|metrics.jsonl"):
            check_is_new(tmp_path, 4)
    status.write_text(json.dumps(STATUS))  # of a time when it did not tell what was saved
    with pytest.raises(UserError, match="metrics.jsonl goes on to step 3"):
        check_is_new(tmp_path, 4)
    records(tmp_path, 2, 4, 6)
    config.write_text("run: {checkpoint_every: 8}")
    check_is_new(tmp_path, 4)  # that run was to save at step 8
    status.write_text(json.dumps(STATUS | {"format_version": 2, "saved_step": 8}))
    with pytest.raises(UserError, match=r"status.json says that step 8 was saved, and there is no .* mount its disk"):
        check_is_new(tmp_path, 4)
    records(tmp_path, 2, 4, 6, 400)
    status.write_text(json.dumps(STATUS | {"format_version": 2, "saved_step": None}))
    check_is_new(tmp_path, 4)  # the disk was full all along


def test_a_config_of_the_users_own_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# mine")
    with pytest.raises(UserError, match="holds config.yaml, which a run would overwrite, and no run; move it"):
        check_is_new(tmp_path, 4)
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    check_is_new(tmp_path, 4)
    shutil.rmtree(tmp_path)
