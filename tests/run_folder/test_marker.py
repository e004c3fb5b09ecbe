"""The marker of a preempted run, as launch scripts read it."""

import json
import time
from pathlib import Path

import pytest

from artkv.run_folder.marker import read_marker, remove_marker, write_marker
from tests.mounted import Disk


@pytest.mark.parametrize("job", [None, "17"])
def test_it_says_where_and_why_the_run_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    before = time.time()
    write_marker(tmp_path / "run", 5, "SIGTERM")
    record = json.loads((tmp_path / "run" / "preempted.json").read_text())
    assert before <= record.pop("time") <= time.time()
    assert record == {"format_version": 1, "step": 5, "reason": "SIGTERM", "job": job}
    marker = read_marker(tmp_path / "run")
    assert marker is not None
    assert (marker.step, marker.reason, marker.job) == (5, "SIGTERM", job)


def test_one_of_the_time_before_versions_is_read(tmp_path: Path) -> None:
    (tmp_path / "preempted.json").write_text('{"step": 5, "reason": "SIGTERM", "time": 1.5, "job": null}')
    marker = read_marker(tmp_path)
    assert marker is not None
    assert (marker.format_version, marker.step) == (1, 5)
    assert read_marker(tmp_path / "elsewhere") is None


def test_a_full_disk_is_told_and_no_error(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    disk.fill()
    write_marker(disk.folder, 5, "SIGTERM")
    assert (
        "preempted.json: cannot be written (No space left on device); look at the exit code" in capsys.readouterr().err
    )
    assert [path.name for path in disk.folder.iterdir()] == ["ballast"]


def test_an_earlier_ones_marker_goes_and_none_is_no_error(tmp_path: Path) -> None:
    write_marker(tmp_path, 5, "walltime")
    remove_marker(tmp_path)
    remove_marker(tmp_path)
    assert list(tmp_path.iterdir()) == []
