"""How far a run is, from its files alone: `status.json`, the lock's heartbeat, metrics, checkpoints, the marker."""

import math
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from artkv.errors import UserError
from artkv.files import reason_of
from artkv.reading import parse_json, printable, read_object, read_regular, remedy_for
from artkv.run_folder.layout import METRICS, best_checkpoint, checkpoints_newest_first, step_of
from artkv.run_folder.marker import Marker, read_marker
from artkv.run_folder.restarts import read_restarts
from artkv.run_folder.run_lock import HEARTBEAT_SECONDS, LOCK, LockRecord, read_lock
from artkv.run_folder.state_record import STATE, StateRecord, read_state_record

# Records of the rate that the time left is reckoned from: the newest, since a run's start is slower.
_RECENT_RECORDS = 20
# Bytes. A million records of a run that logs each step have half of it.
_MOST_METRICS_BYTES = 2**30
# Shown of the time that is left: 3000 years.
_MOST_SECONDS = 10**11


@dataclass(frozen=True)
class RunStatus:
    """What `read_status` finds out; None for what is not known (yet).

    state: starting, running, finished, preempted, failed or dead, and detail, a sentence to it. step: the last one
    logged. steps_per_second: over the newest records. last_checkpoint, best: names of folders.
    """

    run_dir: Path
    state: str
    detail: str
    step: int
    total_steps: int | None
    steps_per_second: float | None
    questions_per_second: float | None
    loss: float | None
    last_checkpoint: str | None
    best: str | None
    validation_step: int | None
    exact_match: float | None
    slowest_rank: int | None
    restarts: int = 0
    last_fault: str | None = None

    @property
    def seconds_left(self) -> float | None:
        """At the present rate, validations and checkpoints not counted."""
        if self.total_steps is None or not self.steps_per_second:
            return None
        return (self.total_steps - self.step) / self.steps_per_second


def read_status(run_dir: Path, wait_seconds: float = 1.5 * HEARTBEAT_SECONDS) -> RunStatus:
    """Reads a run's folder; waits, for `wait_seconds` at most, only to see whether an old heartbeat still moves.

    Raises `UserError` for a folder that holds no run.
    """
    check_is_folder(run_dir)
    record = read_state_record(run_dir)
    lock = _read_lock(run_dir)
    marker = read_marker(run_dir)
    checkpoints, restarts = checkpoints_newest_first(run_dir), read_restarts(run_dir)
    if record is None and lock is None and marker is None and not checkpoints:
        raise UserError(
            f"{run_dir}: holds no run (no {STATE}, run.lock or checkpoints); give the run.output_dir of a run"
        )
    training, validations = read_metrics(run_dir / METRICS)
    state, detail = _state(run_dir, record, lock, marker, wait_seconds)
    last = training[-1] if training else {}
    validation = validations[-1] if validations else {}
    saved_step = (step_of(checkpoints[0]) or 0) if checkpoints else 0
    seconds = [entry["step_seconds"] for entry in training[-_RECENT_RECORDS:] if (entry.get("step_seconds") or 0) > 0]
    slowest = last.get("slowest_rank")
    return RunStatus(
        run_dir=run_dir,
        state=state,
        detail=detail,
        step=max(last.get("step", 0), saved_step),
        total_steps=None if record is None else record.total_steps,
        steps_per_second=1 / statistics.median(seconds) if seconds else None,
        questions_per_second=last.get("questions_per_second"),
        loss=last.get("loss"),
        last_checkpoint=checkpoints[0] if checkpoints else None,
        best=best_checkpoint(run_dir),
        validation_step=validation.get("step"),
        exact_match=validation.get("exact_match"),
        slowest_rank=None if slowest is None else int(slowest),
        restarts=sum(restart.gave_up is None for restart in restarts),
        last_fault=restarts[-1].cause if restarts else None,
    )


def format_status(status: RunStatus) -> str:
    """The lines that `artkv status` prints."""
    total = "?" if status.total_steps is None else status.total_steps
    loss = "" if status.loss is None else f", loss {status.loss:.4g}"
    lines = [("run", str(status.run_dir)), ("state", f"{status.state}{status.detail and ', '}{status.detail}")]
    lines.append(("step", f"{status.step} of {total}{loss}"))
    if status.steps_per_second is not None:
        questions = "" if status.questions_per_second is None else f", {status.questions_per_second:.4g} questions/s"
        lines.append(("rate", f"{status.steps_per_second:.4g} steps/s{questions}"))
    if status.seconds_left is not None and status.state == "running":
        lines.append(("left", str(timedelta(seconds=min(round(status.seconds_left), _MOST_SECONDS)))))
    lines.append(
        ("checkpoint", status.last_checkpoint or ("none yet" if status.state in ("starting", "running") else "none"))
    )
    if status.exact_match is not None:
        lines.append(("score", f"validation exact match {status.exact_match:.3f} at step {status.validation_step}"))
    if status.best is not None:
        lines.append(("best", status.best))
    if status.last_fault is not None:
        lines.append(("restarts", f"{status.restarts}, the last fault: {status.last_fault}"))
    if status.slowest_rank is not None:
        lines.append(("slowest", f"rank {status.slowest_rank}"))
    return "\n".join(f"{name + ':':<12}{printable(text)}" for name, text in lines)


def check_is_folder(run_dir: Path) -> None:
    """Raises `UserError` for what cannot be a run's folder."""
    try:
        if run_dir.is_dir():
            return
    except OSError as error:
        remedy = remedy_for(error, "give the run.output_dir of a run")
        raise UserError(f"{run_dir}: cannot be read ({reason_of(error)}); {remedy}") from None
    raise UserError(f"{run_dir}: is no folder; give the run.output_dir of a run")


def _state(
    run_dir: Path, record: StateRecord | None, lock: LockRecord | None, marker: Marker | None, wait_seconds: float
) -> tuple[str, str]:
    if lock is not None and _is_alive(run_dir, lock, wait_seconds):
        if record is None or record.state != "running":
            return "starting", lock.describe()
        return "running", f"{lock.describe()}, {record.ranks} rank(s) on {', '.join(record.hosts)}"
    if marker is not None:
        return "preempted", f"by {marker.reason} after step {marker.step}; --resume auto goes on"
    if record is None or record.state in ("starting", "running"):
        if lock is not None:
            return "dead", f"{lock.describe()} has ended without a word; --resume auto goes on"
        return "dead", "no process holds the folder; --resume auto goes on"
    return record.state, record.error or ""


def _read_lock(run_dir: Path) -> LockRecord | None:
    try:
        return read_lock(run_dir)
    except OSError as error:
        remedy = remedy_for(error, "remove it if nothing trains there")
        raise UserError(f"{run_dir / LOCK}: cannot be read ({reason_of(error)}); {remedy}") from None


def _is_alive(run_dir: Path, lock: LockRecord, wait_seconds: float) -> bool:
    runs_here = lock.is_running_here()
    if runs_here is not None:
        return runs_here
    if abs(time.time() - lock.time) < 2 * HEARTBEAT_SECONDS:
        return True
    # Old, or the clocks of the two hosts differ: the count tells.
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = _read_lock(run_dir)
        if now is None or (now.token, now.beat) != (lock.token, lock.beat):
            return now is not None
    return False


def read_if_readable(path: Path) -> Mapping[str, Any] | None:
    """What artkv has written as JSON; None where there is none, or none that can be read."""
    with suppress(UserError):
        return read_object(path, "")
    return None


def read_metrics(path: Path, tells: bool = True) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of training and of validations; a last line that is just being written is left out.

    Other lines that are no records, as a power failure leaves, are left out, and told if `tells`. Each record has
    `step` and `time`; all metrics are numbers or None. Raises `UserError` if the file cannot be read.
    """
    records: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    try:
        lines = read_regular(path, _MOST_METRICS_BYTES).split(b"\n")
    except FileNotFoundError:
        return records["train"], records["validation"]
    except OSError as error:
        remedy = remedy_for(error, "restore it, or remove it to do without its records")
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {remedy}") from None
    damaged = []
    if not (lines[-1][:1] or b"{").startswith(b"{") or b"\0" in lines[-1]:  # nothing that is being written
        lines.append(b"")
    for number, line in enumerate(lines[:-1], start=1):
        record = metrics_record(line)
        if record is None:
            damaged.append(number)
        else:
            records[record["kind"]].append(record)
    if damaged and tells:
        told = ", ".join(map(str, damaged[:3])) + (" and more" if len(damaged) > 3 else "")
        print(f"artkv: {path}: {len(damaged)} lines are no records and left out: {told}", file=sys.stderr)
    return records["train"], records["validation"]


def metrics_record(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None if it is none."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("kind") not in ("train", "validation"):
        return None
    step, numbers = record.get("step"), {name: value for name, value in record.items() if name != "kind"}
    if type(step) is not int or not 0 <= step <= 2**53 or not all(map(_is_number_or_none, numbers.values())):
        return None
    return record if type(record.get("time")) in (int, float) else None


def _is_number_or_none(value: Any) -> bool:
    # A whole number that no float holds has no place in a curve.
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max and math.isfinite(value))
