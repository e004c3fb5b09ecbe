"""The marker of a preempted run, as launch scripts read it."""

import json
import time
from pathlib import Path

import pytest

from artkv.run_folder.marker import remove_marker, write_marker


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
    assert record == {"step": 5, "reason": "SIGTERM", "job": job}


def test_an_earlier_ones_marker_goes_and_none_is_no_error(tmp_path: Path) -> None:
    write_marker(tmp_path, 5, "walltime")
    remove_marker(tmp_path)
    remove_marker(tmp_path)
    assert list(tmp_path.iterdir()) == []
