"""Stopping a run between two steps because somebody asks for it: signals, and the end of a Slurm job's time.

SIGTERM (`scancel`, a preempting job, a launcher that ends), SIGUSR1 (`sbatch --signal=USR1@120`), SIGINT (Control-C)
and SIGHUP (a connection that drops, a terminal that is closed) set a flag and nothing else: neither a first nor a
second one can damage what is being written. What the ranks do about it is in `stops.py`. Before the ranks have met all
but SIGUSR1 end the process as usual, since there is nothing to save yet. Who presses Control-C a second time does not
want to wait: that ends the process at once.

No torch here: a command listens before it imports it, which takes seconds.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from artkv.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# As of a program that SIGINT ends.
_INTERRUPTED = 130


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those of some signals that are for this process.

    SIGINT is ignored where a script started it behind itself: a Control-C there is for others. nohup ignores SIGHUP.
    """
    for_others = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
    return [number for number in numbers if number not in for_others]


class StopRequests:
    """What asks this process to stop; without `listen` and `watch_walltime` nothing ever does.

    now: unix seconds; tests replace it.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._signal: str | None = None
        self._is_interrupted = False
        self._walltime_stop = float("inf")
        self._before: dict[signal.Signals, Any] = {}

    def listen(self, *numbers: signal.Signals) -> None:
        """Takes these of `SIGNALS`, from here on, in a process's main thread; elsewhere it does nothing.

        A command never gives them back: until the very end a late signal must not change its exit code.
        """
        if threading.current_thread() is threading.main_thread():
            self._before |= {number: signal.signal(number, self._note) for number in heeded(*numbers)}

    def stop_listening(self) -> None:
        """Puts the handlers back that were there before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def watch_walltime(self, end: float | None, minutes_before: float | None) -> None:
        """Asks to stop so many minutes before `end`, unix seconds; never, where either is None.

        The minutes are cut to a quarter of the time that is left, so that a short job trains before it stops: one that
        stopped at once would be queued again for ever.
        """
        if end is not None and minutes_before is not None:
            self._walltime_stop = end - min(60 * minutes_before, max(0.0, end - self._now()) / 4)

    @property
    def reason(self) -> str | None:
        """Why this rank should stop, one of `SIGNALS` or walltime; None while it should not."""
        if self._signal is None and self._now() >= self._walltime_stop:
            return "walltime"
        return self._signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._is_interrupted:
                os.write(2, b"artkv: interrupted\n")
                os._exit(_INTERRUPTED)
            self._is_interrupted = True
        self._signal = self._signal or signal.Signals(number).name


def job_end_time(environment: Mapping[str, str]) -> float | None:
    """When Slurm will end this job, unix seconds; None outside of a job or where Slurm does not say.

    Slurm sets SLURM_JOB_END_TIME since 23.02; before that `squeue` is asked. `UserError` where it is set to no time.
    """
    if "SLURM_JOB_END_TIME" in environment:
        text = environment["SLURM_JOB_END_TIME"]
        if not re.fullmatch(r"\s*([0-9]{1,18}|NONE|N/A|Unknown|)\s*", text, re.IGNORECASE):
            raise UserError(
                f"environment: SLURM_JOB_END_TIME={text!r:.80} is no time in seconds since 1970; unset it, and squeue "
                "is asked"
            )
    elif "SLURM_JOB_ID" in environment:
        command = ["squeue", "--noheader", "--jobs", environment["SLURM_JOB_ID"], "--format", "%e"]
        try:
            text = subprocess.run(
                command, capture_output=True, text=True, timeout=30, check=True,
                env={**environment, "SLURM_TIME_FORMAT": "%s"},
            ).stdout  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
    else:
        return None
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):  # NONE, N/A: a job without an end
        return None
