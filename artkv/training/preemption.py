"""Stopping a run between two steps because somebody asks for it: signals, and the end of a Slurm job's time.

SIGTERM (`scancel`, a preempting job, a launcher that ends) and SIGUSR1 (`sbatch --signal=USR1@120`) set a flag
and nothing else, so that neither a first nor a second one can damage what is being written. Until the ranks have
met there is nothing to save, and SIGTERM ends a process: a handler would have to wait for the meeting. The loop adds up
all ranks' flags with a number that it reduces anyway, so they stop after the same step, save, and leave
`preempted.json` for the script that requeues the job.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from artkv.errors import Preempted, RunFailed
from artkv.run_folder.marker import write_marker

if TYPE_CHECKING:  # torch takes seconds, in which a command would not listen yet
    from artkv.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequests:
    """What asks this process to stop; without `listen` and `watch_walltime` nothing ever does.

    now: unix seconds; tests replace it.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._signal: str | None = None
        self._walltime_stop = float("inf")
        self._before: dict[signal.Signals, Any] = {}
        # Whether this start has saved anything that the next one need not do again, or will have when it stops: a
        # step, a validation, a cache's shard. The same on all ranks.
        self.has_gained = False

    def listen(self, *numbers: signal.Signals) -> None:
        """Takes these of `SIGNALS`, from here on, in a process's main thread; elsewhere it does nothing.

        A command never gives them back: until the very end a late signal must not change its exit code.
        """
        if threading.current_thread() is threading.main_thread():
            self._before |= {number: signal.signal(number, self._note) for number in numbers}

    def stop_listening(self) -> None:
        """Puts the handlers back that were there before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def watch_walltime(self, end: float | None, minutes_before: float | None) -> None:
        """Asks to stop so many minutes before `end`, unix seconds; never, where either is None.

        At most a quarter of the time that is left now is given up: a short job that stopped at once and was
        queued again would do so for ever.
        """
        if end is not None and minutes_before is not None:
            self._walltime_stop = end - min(60 * minutes_before, max(0.0, end - self._now()) / 4)

    @property
    def reason(self) -> str | None:
        """Why this rank should stop, SIGTERM, SIGUSR1 or walltime; None while it should not."""
        if self._signal is None and self._now() >= self._walltime_stop:
            return "walltime"
        return self._signal

    def check(self, world: "World", run_dir: Path, step: int) -> None:
        """Stops all ranks if any of them is asked to; called on all ranks, while `step` is what is saved.

        A meeting of the ranks: for between the parts of a start, and for where the loop already knows.
        Raises `Preempted`, on all ranks, after rank 0 has written the marker; `RunFailed`, with no marker, where the
        job's time is over before anything was gained, since a next start would do no better.
        """
        reasons = [reason for reason in world.gather(self.reason) if reason is not None]
        if not reasons:
            return
        if reasons[0] != signal.SIGTERM.name and not self.has_gained:
            world.barrier()
            raise RunFailed(
                f"stopped by {reasons[0]} before this start had gained anything on step {step}; another like it would "
                "not either: give the job more time, or signal it later (sbatch --time, --signal, "
                "run.stop_before_walltime_minutes)"
            )
        world.together(lambda: write_marker(run_dir, step, reasons[0]) if world.is_main else None)
        raise Preempted(step, reasons[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number).name


def job_end_time(environment: Mapping[str, str]) -> float | None:
    """When Slurm will end this job, unix seconds; None outside of a job or where Slurm does not say.

    Slurm sets SLURM_JOB_END_TIME since 23.02; before that `squeue` is asked.
    """
    if "SLURM_JOB_END_TIME" in environment:
        text = environment["SLURM_JOB_END_TIME"]
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
