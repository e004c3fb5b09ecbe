"""What a run writes of itself while it trains, in step on all ranks: checkpoints, and scores into them.

A disk that is full or away for a while ends no run: what could not be written is told, tried again, and given up with
one message after `run.save_retry_minutes`. The checkpoints before it stay whatever happens.
"""

import errno
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from artkv.config import Config
from artkv.distributed import World
from artkv.errors import Preempted, RunFailed, UserError
from artkv.files import reason_of
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.marker import remove_marker
from artkv.run_folder.run_lock import RunLock
from artkv.run_folder.state import Identity, Progress, TrainableState
from artkv.training.engine import TrainingEngine

# Between two tries at what could not be written: each gathers all that trains, and writes until the disk refuses.
RETRY_SECONDS = 30.0


class Saver:
    """Writes into one run's folder, for as long as the run holds it; all ranks call it alike, rank 0 writes.

    lock: None where nothing else can write there. note_saved: called on rank 0 with the step of each checkpoint that is
    on the disk.
    """

    def __init__(
        self,
        checkpoints: RunCheckpoints,
        config: Config,
        identity: Identity,
        lock: RunLock | None,
        world: World,
        note_saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._checkpoints = checkpoints
        self._config = config
        self._identity = identity
        self._lock = lock
        self._world = world
        self._note_saved = note_saved
        self._began = time.monotonic()
        self._first_step: int | None = None
        # What is not on the disk: its progress, on all ranks, and its state, on rank 0; when to try again, as a step.
        self._unsaved: Progress | None = None
        self._unsaved_state: TrainableState | None = None
        self._retry_step = 0
        self._failing_since = 0.0
        self._is_prune_told = False

    def is_overdue(self, step: int) -> bool:
        """Whether what could not be written is to be tried again after `step`; all ranks know without meeting."""
        self._first_step = step - 1 if self._first_step is None else self._first_step
        return self._unsaved is not None and step >= self._retry_step

    def save(self, engine: TrainingEngine, progress: Progress) -> None:
        """Writes a checkpoint; called on all ranks, which gather it.

        If that fails the run goes on, and `is_overdue` says when to call this again. Raises `RunFailed`, on all ranks,
        once it has failed for `run.save_retry_minutes`.
        """
        self._unsaved, self._unsaved_state = progress, engine.state(keep=self._world.is_main)
        self._try()

    def save_score(self, engine: TrainingEngine, progress: Progress) -> None:
        """Writes what a validation changed into the checkpoint of its step; called on all ranks."""
        # Else resumed from another run's folder, or the disk is full.
        is_there = self._world.broadcast(self._checkpoints.has(progress.step)) and self._unsaved is None
        if not is_there:
            self.save(engine, progress)
        else:
            self._unsaved = progress
            self._try()

    def finish(self, is_asked_to_stop: Callable[[], bool]) -> None:
        """Waits until the last checkpoint is on the disk, as `save` does, or fails; called on all ranks."""
        while self._unsaved is not None:
            if any(self._world.gather(is_asked_to_stop())):
                raise RunFailed(
                    f"was to stop after step {self._unsaved.step}, which is not saved; {self._what_is_left()}"
                )
            # No longer than other ranks wait in a meeting.
            time.sleep(min(RETRY_SECONDS, 15 * self._config.distributed.timeout_minutes, 5.0))
            self._try()

    def check_stop(self, stop: Preempted) -> None:
        """Tries what a stop needs once more; raises `RunFailed`, with no marker of a stop, if it cannot be written."""
        if self._unsaved is None:
            return
        problem = self._world.broadcast(self._attempt())
        if problem is None:
            self._unsaved = self._unsaved_state = None
            return
        self._world.on_main(lambda: remove_marker(self._checkpoints.run_dir))
        raise RunFailed(f"{stop}, which could not be saved ({problem}); {self._what_is_left(problem)}")

    def _try(self) -> None:
        """Writes what is not on the disk, or says when to try again."""
        assert self._unsaved is not None
        step = self._unsaved.step
        problem = self._world.broadcast(self._attempt())
        now = time.monotonic()
        if problem is None:
            if self._failing_since:
                self._say(f"step {step} is saved")
            self._unsaved, self._unsaved_state, self._failing_since = None, None, 0.0
            return
        minutes = self._config.run.save_retry_minutes
        is_first, self._failing_since = not self._failing_since, self._failing_since or now
        is_over = self._world.broadcast(now - self._failing_since >= 60 * minutes)
        if is_over:
            since = f" for {minutes:g} minutes (run.save_retry_minutes)" if minutes else ""
            raise RunFailed(f"step {step} could not be saved{since}: {problem}; {self._what_is_left(problem)}")
        if is_first:
            self._say(
                f"step {step} could not be saved: {problem}; training goes on, and tries again about each "
                f"{RETRY_SECONDS:g} s, for {minutes:g} minutes (run.save_retry_minutes); make room"
            )
        done = step - (self._first_step if self._first_step is not None else step - 1)
        pace = (now - self._began) / max(1, done)  # seconds a step, with all that lies between
        self._retry_step = self._world.broadcast(step + max(1, math.ceil(RETRY_SECONDS / max(pace, 1e-9))))

    def _attempt(self) -> str | None:
        """Writes what is not on the disk, on rank 0; the reason if that fails, None on the others."""
        reasons: list[str] = []

        def write() -> None:
            if not self._world.is_main or self._unsaved is None:
                return
            if self._lock is not None:
                try:
                    self._lock.check()
                except (OSError, UserError) as error:
                    reasons.append(_reason(error))
                    return
            try:
                self._write(self._unsaved)
            except (OSError, UserError) as error:
                reasons.append(_reason(error))
            else:
                self._prune(self._unsaved)

        self._world.together(write)
        return reasons[0] if reasons else None

    def _write(self, progress: Progress) -> None:
        if self._unsaved_state is not None:
            self._checkpoints.save(self._unsaved_state, progress, self._identity, self._config)
        else:
            self._checkpoints.rewrite_progress(progress)
        self._mark_best(progress)
        self._note_saved(progress.step)

    def _mark_best(self, progress: Progress) -> None:
        if progress.best_step is None:
            return
        if self._checkpoints.has(progress.best_step):
            self._checkpoints.mark_best(progress.best_step)
        elif self._failing_since and progress.best_step < progress.step:
            self._say(f"step {progress.best_step}, the best so far, could not be saved and is lost")

    def _prune(self, progress: Progress) -> None:
        """Removes old checkpoints, now that a newer one is on the disk; what cannot be removed is told once."""
        try:
            self._checkpoints.prune(self._config.run.keep_checkpoints, progress.best_step)
        except (OSError, UserError) as error:
            if not self._is_prune_told:
                self._say(f"old checkpoints cannot be removed: {_reason(error)}")
            self._is_prune_told = True

    def _what_is_left(self, problem: str = "") -> str:
        names = self._world.broadcast(self._world.on_main(self._checkpoints.newest_first)) or []
        run_dir: Path = self._checkpoints.run_dir
        left = f"the newest checkpoint is {names[0]}" if names else "there is no checkpoint yet"
        remedy = "raise `ulimit -f`" if os.strerror(errno.EFBIG) in problem else f"make room in {run_dir}"
        return f"{left}; {remedy}, and go on with --resume auto"

    def _say(self, message: str) -> None:
        if self._world.is_main:
            print(f"artkv: {message}", file=sys.stderr, flush=True)


def _reason(error: OSError | UserError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {reason_of(error)}" if error.filename else reason_of(error)
    return str(error)
