"""How far a run is, from its files alone: `status.json`, the lock's heartbeat, metrics, checkpoints, the marker."""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artkv.errors import Preempted, UserError
from artkv.files import write_whole
from artkv.run_folder.layout import best_checkpoint, checkpoints_newest_first
from artkv.run_folder.marker import MARKER
from artkv.run_folder.run_lock import HEARTBEAT_SECONDS, LOCK, LockRecord, read_lock

if TYPE_CHECKING:
    from artkv.distributed import World

STATE = "status.json"
# Records of the rate that the time left is reckoned from: the newest, since a run's start is slower.
_RECENT_RECORDS = 20


@contextmanager
def recorded_state(run_dir: Path, world: "World") -> Iterator[Callable[[int], None]]:
    """Keeps `run_dir/status.json`: that a start began, and how it ended; entered on all ranks, with the lock held.

    Yields what is to be called, on all ranks, when the start is over and training begins, with the total of steps. A
    start that ends well without it had nothing to do: the record of a finished run then stays what it was.
    """
    before = world.on_main(lambda: read_if_readable(run_dir / STATE)) or {}
    hosts = list(dict.fromkeys(world.gather(socket.gethostname())))
    record: dict[str, Any] = {
        "state": "starting", "total_steps": None, "ranks": world.size, "hosts": hosts,
        "job": os.environ.get("SLURM_JOB_ID"), "started": time.time(), "ended": None, "error": None,
    }  # fmt: skip

    def write(**changes: Any) -> None:
        record.update(changes)
        if world.is_main:
            write_whole(run_dir / STATE, lambda path: path.write_text(json.dumps(record, indent=2), encoding="utf-8"))

    world.together(write)
    try:
        yield lambda total_steps: world.together(lambda: write(state="running", total_steps=total_steps))
    except BaseException as error:
        is_preempted = isinstance(error, Preempted)
        first_line = (str(error).splitlines() or [""])[0]
        with suppress(OSError):  # a full disk may be what ended the run, and shall be told
            write(
                state="preempted" if is_preempted else "failed",
                ended=time.time(),
                error=first_line if is_preempted else f"{type(error).__name__}: {first_line}",
            )
            if world.is_main and not any(_is_of_a_run(path) for path in run_dir.iterdir()):
                (run_dir / STATE).unlink()  # a start that was wrong from the first leaves no folder
        raise
    if record["total_steps"] is None and before.get("state") == "finished":
        world.together(lambda: write(**before))
    else:
        total_steps = record["total_steps"] or before.get("total_steps")
        world.together(lambda: write(state="finished", ended=time.time(), total_steps=total_steps))


def _is_of_a_run(path: Path) -> bool:
    return path.name not in (LOCK, STATE) and not path.name.startswith(".")


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
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: is no folder; give the run.output_dir of a run")
    record = _read_json(run_dir / STATE)
    lock = read_lock(run_dir)
    marker = _read_json(run_dir / MARKER)
    checkpoints = checkpoints_newest_first(run_dir)
    if record is None and lock is None and marker is None and not checkpoints:
        raise UserError(
            f"{run_dir}: holds no run (no {STATE}, run.lock or checkpoints); give the run.output_dir of a run"
        )
    training, validations = read_metrics(run_dir / "metrics.jsonl")
    state, detail = _state(run_dir, record, lock, marker, wait_seconds)
    last = training[-1] if training else {}
    validation = validations[-1] if validations else {}
    saved_step = int(checkpoints[0].removeprefix("step_")) if checkpoints else 0
    seconds = [entry["step_seconds"] for entry in training[-_RECENT_RECORDS:] if entry.get("step_seconds")]
    slowest = last.get("slowest_rank")
    return RunStatus(
        run_dir=run_dir,
        state=state,
        detail=detail,
        step=max(last.get("step", 0), saved_step),
        total_steps=None if record is None else record["total_steps"],
        steps_per_second=1 / statistics.median(seconds) if seconds else None,
        questions_per_second=last.get("questions_per_second"),
        loss=last.get("loss"),
        last_checkpoint=checkpoints[0] if checkpoints else None,
        best=best_checkpoint(run_dir),
        validation_step=validation.get("step"),
        exact_match=validation.get("exact_match"),
        slowest_rank=None if slowest is None else int(slowest),
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
        lines.append(("left", str(timedelta(seconds=round(status.seconds_left)))))
    lines.append(("checkpoint", status.last_checkpoint or "none yet"))
    if status.exact_match is not None:
        lines.append(("score", f"validation exact match {status.exact_match:.3f} at step {status.validation_step}"))
    if status.best is not None:
        lines.append(("best", status.best))
    if status.slowest_rank is not None:
        lines.append(("slowest", f"rank {status.slowest_rank}"))
    return "\n".join(f"{name + ':':<12}{text}" for name, text in lines)


def _state(
    run_dir: Path,
    record: Mapping[str, Any] | None,
    lock: LockRecord | None,
    marker: Mapping[str, Any] | None,
    wait_seconds: float,
) -> tuple[str, str]:
    if lock is not None and _is_alive(run_dir, lock, wait_seconds):
        if record is None or record["state"] != "running":
            return "starting", lock.describe()
        return "running", f"{lock.describe()}, {record['ranks']} rank(s) on {', '.join(record['hosts'])}"
    if marker is not None:
        return "preempted", f"by {marker['reason']} after step {marker['step']}; --resume auto goes on"
    if record is None or record["state"] in ("starting", "running"):
        if lock is not None:
            return "dead", f"{lock.describe()} has ended without a word; --resume auto goes on"
        return "dead", "no process holds the folder; --resume auto goes on"
    return str(record["state"]), str(record["error"] or "")


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
        now = read_lock(run_dir)
        if now is None or (now.token, now.beat) != (lock.token, lock.beat):
            return now is not None
    return False


def _read_json(path: Path) -> Mapping[str, Any] | None:
    """A file that is written whole, so anything but JSON is somebody else's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not what artkv writes; give the run.output_dir of a run")
    return content


def read_if_readable(path: Path) -> Mapping[str, Any] | None:
    """What artkv has written as JSON; None where there is none, or none that can be read."""
    with suppress(UserError, OSError):
        return _read_json(path)
    return None


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of training and of validations; a line that is just being written is left out."""
    training: list[dict[str, Any]] = []
    validations: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
            (training if record["kind"] == "train" else validations).append(record)
        except (ValueError, KeyError, TypeError):
            continue
    return training, validations
