"""`preempted.json`: says to the script that requeues a job that its run was stopped and is saved."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from artkv.files import reason_of, write_small
from artkv.reading import Count, check_version, read_object, to_record

MARKER = "preempted.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Marker:
    """What `preempted.json` holds. step: the optimizer steps saved. time: unix seconds. job: Slurm's, if it was one."""

    format_version: int
    step: Count
    reason: str
    time: float
    job: str | None


def write_marker(run_dir: Path, step: int, reason: str) -> None:
    """Writes `run_dir/preempted.json`, whole or absent; called on rank 0 alone.

    A disk that is full is told and no error: what the run has saved is saved, and its exit code says the same.
    """
    record = Marker(FORMAT_VERSION, step, reason, time.time(), os.environ.get("SLURM_JOB_ID"))
    try:
        write_small(run_dir / MARKER, json.dumps(asdict(record)).encode())
    except OSError as error:
        print(
            f"artkv: {run_dir / MARKER}: cannot be written ({reason_of(error)}); look at the exit code", file=sys.stderr
        )


def read_marker(run_dir: Path) -> Marker | None:
    """The marker of a run that was stopped, None where there is none; `UserError` for what artkv does not write."""
    path, remedy = run_dir / MARKER, "give the run.output_dir of a run, or remove the file"
    tree = read_object(path, remedy)
    if tree is None:
        return None
    check_version(tree, FORMAT_VERSION, str(path))
    return to_record(Marker, tree, str(path), remedy)


def remove_marker(run_dir: Path) -> None:
    """Removes the marker of an earlier start, if there is one; called on rank 0 alone."""
    (run_dir / MARKER).unlink(missing_ok=True)
