"""`status.json`: that a start began, and how it ended, as other programs and `artkv status` read it."""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from artkv.errors import Preempted, UserError, shared_memory_message, summary
from artkv.files import reason_of, told, write_small
from artkv.reading import Count, Positive, check_version, read_object, to_record
from artkv.run_folder.layout import LOGS
from artkv.run_folder.run_lock import LOCK

if TYPE_CHECKING:
    from artkv.distributed import World

STATE = "status.json"
# A moment after 1970, within the next three thousand years.
UnixSeconds = Annotated[float, Ge(0), Le(10**11)]
# The first, in which no version was written, had no `saved_step`.
FORMAT_VERSION, WITHOUT_SAVED_STEP = 2, 1
_REMEDY = "give the run.output_dir of a run, or remove the file"
# What gloo and NCCL say where another rank is gone. Neither knows which one.
_LOST = re.compile(
    r"connection closed by peer|connection reset by peer|broken pipe|connection refused|remote process exited|"
    r"socket closed|ncclRemoteError|ncclSystemError|failed to recv",
    re.IGNORECASE,
)
_SILENT = re.compile(
    r"timed out waiting|socket has timed out|watchdog caught collective|ran for \d+ milliseconds before timing out",
    re.I,
)


@dataclass(frozen=True)
class StateRecord:
    """What `status.json` holds; None for what is not known (yet).

    total_steps: of the whole run. hosts: of the ranks, each once. job: Slurm's. started, ended: unix seconds. error:
    why it failed or was stopped. saved_step: of the newest checkpoint written into this folder, by whichever start.
    """

    format_version: int
    state: Literal["starting", "running", "finished", "preempted", "failed"]
    total_steps: Count | None
    ranks: Positive
    hosts: list[str]
    job: str | None
    started: UnixSeconds
    ended: UnixSeconds | None
    error: str | None
    saved_step: Count | None


def read_state_record(run_dir: Path) -> StateRecord | None:
    """The record of a run's folder, None where there is none; `UserError` for what artkv does not write."""
    path = run_dir / STATE
    tree = read_object(path, _REMEDY)
    if tree is None:
        return None
    check_version(tree, FORMAT_VERSION, str(path))
    if tree["format_version"] == WITHOUT_SAVED_STEP:
        tree.setdefault("saved_step", None)
    return to_record(StateRecord, tree, str(path), _REMEDY)


class RecordedState:
    """The record of the start that goes on; called on all ranks, rank 0 writes."""

    def __init__(self, run_dir: Path, world: "World", record: StateRecord) -> None:
        self.record = record
        self._path = run_dir / STATE
        self._world = world
        self._is_told = False

    def begin_training(self, total_steps: int) -> None:
        """Notes that the start is over and training begins."""
        self.note(state="running", total_steps=total_steps)

    def note(self, **changes: Any) -> None:
        """Writes what has changed. A disk without room is told once, and ends no run."""
        self.record = replace(self.record, **changes)
        if not self._world.is_main:
            return
        try:
            write_small(self._path, json.dumps(asdict(self.record), indent=2).encode())
        except OSError as error:
            if not self._is_told:
                print(
                    f"artkv: {self._path}: cannot be written ({reason_of(error)}); until it can, artkv status and what "
                    "else reads it see the state before",
                    file=sys.stderr,
                )
            self._is_told = True
        else:
            self._is_told = False


@contextmanager
def recorded_state(run_dir: Path, world: "World") -> Iterator[RecordedState]:
    """Keeps `run_dir/status.json`: that a start began, and how it ended; entered on all ranks, with the lock held.

    A start that ends well without `begin_training` had nothing to do, and one that ends in a `UserError` was refused:
    the record of a finished run then stays what it was.
    """
    before = world.on_main(lambda: _read_if_readable(run_dir))
    was_finished = before is not None and before.state == "finished"
    ranks = world.gather(socket.gethostname())
    first = StateRecord(
        FORMAT_VERSION, "starting", total_steps=None, ranks=world.size, hosts=list(dict.fromkeys(ranks)),
        job=os.environ.get("SLURM_JOB_ID"), started=time.time(), ended=None, error=None,
        saved_step=None if before is None else before.saved_step,
    )  # fmt: skip
    state = RecordedState(run_dir, world, first)

    def begin() -> None:
        with told(f"run.output_dir = {run_dir}: {STATE}", "make room, or give another folder"):
            write_small(run_dir / STATE, json.dumps(asdict(first), indent=2).encode())

    world.on_main(begin)
    try:
        yield state
    except BaseException as error:
        if was_finished and state.record.state == "starting" and isinstance(error, UserError):
            state.note(**asdict(before))  # type: ignore[arg-type]
            raise
        is_preempted = isinstance(error, Preempted)
        state.note(
            state="preempted" if is_preempted else "failed", ended=time.time(), error=cause_of(error, world.rank, ranks)
        )
        with suppress(OSError):
            if world.is_main and not any(_is_of_a_run(path) for path in run_dir.iterdir()):
                (run_dir / STATE).unlink()  # a start that was wrong from the first leaves no folder
        raise
    if was_finished and state.record.state == "starting":
        state.note(**asdict(before))  # type: ignore[arg-type]
    else:
        earlier = None if before is None else before.total_steps
        state.note(state="finished", ended=time.time(), total_steps=state.record.total_steps or earlier)


def cause_of(error: BaseException, rank: int, hosts: Sequence[str]) -> str:
    """What ended a run, in a line; hosts: of all ranks.

    A rank whose peer is gone knows its own lost connection alone, which says nothing of the cause: then it is told
    which rank that can have been, and where to look.
    """
    text = str(error)
    if isinstance(error, Preempted):
        return summary(error)
    is_lost, is_silent = _is_lost(text), _SILENT.search(text)
    if len(hosts) > 1 and not isinstance(error, UserError) and (is_lost or is_silent):
        others = [other for other in range(len(hosts)) if other != rank]
        where = ", ".join(dict.fromkeys(hosts[other] for other in others))
        which = f"rank {others[0]}" if len(others) == 1 else f"one of ranks {others[0]} to {others[-1]}"
        how = "lost connection" if is_lost else "no answer in time"
        logs = f"{LOGS}/rank_{others[0]:05d}.log" if len(others) == 1 else LOGS
        return f"{which} on {where} did not answer: {how}; see {logs}"
    return f"{type(error).__name__}: {summary(error)}"


def is_lost_peer(error: str) -> bool:
    """Whether an error's text says no more than that another rank is gone."""
    return _is_lost(error) or _SILENT.search(error) is not None


def _is_lost(error: str) -> bool:
    return _LOST.search(error) is not None and shared_memory_message(error) is None


def record_cause(run_dir: Path, cause: str) -> None:
    """Writes what ended a start that could not say so itself, or did not know; called when none of it is left."""
    record = _read_if_readable(run_dir)
    if record is not None and record.state in ("starting", "running", "failed"):
        with suppress(OSError):
            ended = replace(record, state="failed", ended=time.time(), error=cause)
            write_small(run_dir / STATE, json.dumps(asdict(ended), indent=2).encode())


def _read_if_readable(run_dir: Path) -> StateRecord | None:
    with suppress(UserError):
        return read_state_record(run_dir)
    return None


def _is_of_a_run(path: Path) -> bool:
    return path.name not in (LOCK, STATE) and not path.name.startswith(".")
