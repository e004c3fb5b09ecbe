"""`preempted.json`: says to the script that requeues a job that its run was stopped and is saved."""

import json
import os
import time
from pathlib import Path

from artkv.files import write_whole

MARKER = "preempted.json"


def write_marker(run_dir: Path, step: int, reason: str) -> None:
    """Writes `run_dir/preempted.json`, whole or absent; called on rank 0 alone."""
    record = {"step": step, "reason": reason, "time": time.time(), "job": os.environ.get("SLURM_JOB_ID")}
    write_whole(run_dir / MARKER, lambda path: path.write_text(json.dumps(record), encoding="utf-8"))


def remove_marker(run_dir: Path) -> None:
    """Removes the marker of an earlier start, if there is one; called on rank 0 alone."""
    (run_dir / MARKER).unlink(missing_ok=True)
