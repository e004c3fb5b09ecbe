"""Rates of training from the host's clock, without waiting for the device."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """Times optimizer steps and leaves out what is no training: evaluation, checkpoints.

    A step lasts from the end of the one before (or from the making of the clock). Nothing here
    synchronises the device: on CUDA a single duration is when the host got round the loop, which
    the device's queue bounds, so that rates over some steps are true while one step's time may not
    be. `now` gives seconds; tests replace it.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._step_began = now()
        self._paused_seconds = 0.0
        self._pause_depth = 0
        self._waited_seconds = 0.0
        self._durations: list[float] = []
        self._questions = 0
        self._paintings = 0

    def step_done(self, questions: int, paintings: int) -> None:
        """Ends a step that trained on so many questions and paintings, those of all ranks."""
        now = self._now()
        self._durations.append(max(0.0, now - self._step_began - self._paused_seconds))
        self._step_began = now
        self._paused_seconds = 0.0
        self._questions += questions
        self._paintings += paintings

    def waiting_for(self, batches: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each is there counts as waiting for data.

        It is the host's waiting: where the device still has work queued, it need not cost the step anything.
        """
        while True:
            began = self._now()
            try:
                item = next(batches)
            except StopIteration:
                return
            finally:
                self._waited_seconds += self._now() - began
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside counts for no step; may be nested."""
        began = self._now()
        self._pause_depth += 1
        try:
            yield
        finally:
            self._pause_depth -= 1
            if self._pause_depth == 0:
                self._paused_seconds += self._now() - began

    def read(self) -> dict[str, float]:
        """The rates since the last reading, and begins a new window; empty if no step was done.

        questions_per_second, paintings_per_second: over the window's training time. step_seconds:
        the window's median. step_seconds_max: its longest. data_wait_share: of the window's training time,
        what the host waited for data.
        """
        if not self._durations:
            return {}
        seconds = max(sum(self._durations), 1e-9)
        rates = {
            "questions_per_second": self._questions / seconds,
            "paintings_per_second": self._paintings / seconds,
            "step_seconds": statistics.median(self._durations),
            "step_seconds_max": max(self._durations),
            "data_wait_share": self._waited_seconds / seconds,
        }
        self._durations = []
        self._questions = self._paintings = 0
        self._waited_seconds = 0.0
        return rates
