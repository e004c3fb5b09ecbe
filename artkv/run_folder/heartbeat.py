"""Signs of life: each rank of a supervised run says in a file of its own what it is at, and that it goes on.

The files are in the run's folder, which all hosts share, and there in one of the supervisor's own: a second supervisor,
whose ranks are refused since the folder is in use, must not take these for its own. They have one length and are
written in place, so that a full disk does not silence a rank.
"""

import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from artkv.errors import UserError, summary
from artkv.reading import parse_json, read_regular, to_record
from artkv.run_folder.processes import machine, process_start

FOLDER = ".heartbeats"
# Asks a rank to write the stacks of its threads; see `stacks_file`.
STACKS_SIGNAL = signal.SIGUSR2
# Bytes of a file, blanks included, and characters of an error in it.
_LENGTH = 2048
_LONGEST_ERROR = 300
# Between two writes in one phase: a step may take milliseconds, and the folder may be on a file server.
_SECONDS_BETWEEN_WRITES = 0.5
# Between two pulses.
PULSE_SECONDS = 5.0

# The phase whose signs are all of one kind. In others the first may come soon and the next late, as in a start, which
# imports and then reads weights: what is usual is known once a rank has got through them.
_EVEN = "training"

Phase = Literal["starting", "caching", "training", "saving", "validating", "ended"]


@dataclass(frozen=True)
class Beat:
    """What a rank said last.

    count: its signs of life so far. step: optimizer steps done; first_step: before this start. longest: seconds
    between two signs, by phase, of those that it has got through and of training. pulse: goes up every `PULSE_SECONDS`
    while the process runs at all, however long what it is at takes; one that is stopped, or whose host is lost, has
    none. machine, pid, pid_start: which process; see `processes.py`. slurm_step: such as 17.0, under srun. error: what
    it ended with, "" where it is not at its end or that was good. is_wrong_input: another start would find the same.
    """

    rank: int
    count: int
    phase: Phase
    step: int
    first_step: int
    longest: dict[str, float]
    pulse: int
    host: str
    machine: str
    pid: int
    pid_start: int | None
    slurm_step: str | None
    error: str
    is_wrong_input: bool

    def describe(self) -> str:
        """Such as `rank 1 (process 4711 on n1)`."""
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def is_here(self) -> bool:
        """Whether its process is, or was, one of this machine."""
        return self.machine == machine() and self.pid_start is not None

    @property
    def lives_here(self) -> bool:
        """Whether its process is one of this machine, and still there."""
        return self.is_here and process_start(self.pid) == self.pid_start


class Heartbeat:
    """One rank's signs of life, in a supervisor's folder. Without one it does nothing."""

    def __init__(self, folder: Path | None, rank: int, environment: Mapping[str, str] = os.environ) -> None:
        self._path = None if folder is None else beat_path(folder, rank)
        self._written = 0.0
        self._last = time.monotonic()
        self._longest_here = 0.0  # between two signs since the phase began
        self._pulse = 0
        self._ended = threading.Event()
        self._file = threading.Lock()
        job, step = environment.get("SLURM_JOB_ID"), environment.get("SLURM_STEP_ID")
        self._beat = Beat(
            rank=rank, count=0, phase="starting", step=0, first_step=0, longest={}, pulse=0,
            host=socket.gethostname(), machine=machine(), pid=os.getpid(), pid_start=process_start(os.getpid()),
            slurm_step=None if job is None or step is None else f"{job}.{step}", error="", is_wrong_input=False,
        )  # fmt: skip
        if self._path is not None:
            with suppress(OSError):
                self._stacks = stacks_file(self._path).open("w", encoding="utf-8")  # stays open: faulthandler needs it
                faulthandler.register(STACKS_SIGNAL, file=self._stacks)
            self.beat("starting")
            threading.Thread(target=self._go_on, name="pulse", daemon=True).start()

    @property
    def phase(self) -> Phase:
        """What this rank is at."""
        return self._beat.phase

    def beat(self, phase: Phase | None = None, step: int | None = None) -> None:
        """Says that this rank goes on. phase, step: what it is at from here on, where that changes."""
        if self._path is None:
            return
        before, now = self._beat, time.monotonic()
        self._longest_here = max(self._longest_here, now - self._last)
        self._last = now
        longest, is_through = before.longest, phase not in (None, before.phase)
        if (is_through or before.phase == _EVEN) and self._longest_here > longest.get(before.phase, 0.0):
            longest = longest | {before.phase: round(self._longest_here, 3)}
        if is_through:
            self._longest_here = 0.0
        done = step or before.step
        first_step = done if before.phase == "starting" else before.first_step
        self._beat = replace(
            before, count=before.count + 1, phase=phase or before.phase, step=done, first_step=first_step,
            longest=longest,
        )  # fmt: skip
        is_news = self._beat.phase != before.phase or longest.keys() != before.longest.keys()
        if is_news or now - self._written > _SECONDS_BETWEEN_WRITES:
            self._write()

    def end(self, error: BaseException | None) -> None:
        """Says that this rank is at its end, and why."""
        if self._path is not None:
            text = "" if error is None else f"{type(error).__name__}: {summary(error)}"[:_LONGEST_ERROR]
            self._beat = replace(self._beat, error=text, is_wrong_input=isinstance(error, UserError))
            self.beat("ended")
            self._ended.set()

    def _go_on(self) -> None:
        while not self._ended.wait(PULSE_SECONDS):
            self._pulse += 1
            self._write()

    def _write(self) -> None:
        assert self._path is not None
        # A disk on which not even this can be written is the supervisor's too, which then counts no silence.
        with self._file, suppress(OSError):
            text = json.dumps(asdict(replace(self._beat, pulse=self._pulse))).encode().ljust(_LENGTH - 1) + b"\n"
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, text, 0)
            finally:
                os.close(descriptor)  # on a file server others see it now
        self._written = time.monotonic()


@contextmanager
def heartbeat(folder: Path | None, rank: int) -> Iterator[Heartbeat]:
    """A rank's heartbeat, which says how the block ended; None: it does nothing."""
    alive = Heartbeat(folder, rank)
    try:
        yield alive
    except BaseException as error:
        alive.end(error)
        raise
    alive.end(None)


def read_beats(folder: Path) -> dict[int, Beat]:
    """What the ranks of a supervisor have said last, by rank; a file that is just being written is left out."""
    beats = {}
    for path in folder.glob("rank_*.json"):
        with suppress(OSError, ValueError, UserError):
            beat = to_record(Beat, parse_json(read_regular(path)), str(path), "")
            beats[beat.rank] = beat
    return beats


def stacks_file(path: Path) -> Path:
    """Where a rank, whose heartbeat is `path`, writes its threads' stacks when it gets `STACKS_SIGNAL`."""
    return path.with_suffix(".stacks")


def beat_path(folder: Path, rank: int) -> Path:
    """A rank's heartbeat."""
    return folder / f"rank_{rank:05d}.json"
