"""Rates of training, without waiting for the device."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from artkv.monitoring.device_time import DeviceTime

T = TypeVar("T")

# From one moment of `DeviceTime` to another.
_Stretch = tuple[Any, Any]


class Window(NamedTuple):
    """Some steps, one after another, as they were timed.

    steps: the stretches that each is made of, without pauses. seconds_waited: the host's, for data.
    """

    time: DeviceTime
    steps: list[list[_Stretch]]
    questions: int
    paintings: int
    seconds_waited: float

    def rates(self) -> dict[str, float]:
        """The window's rates; waits until the device is done with its steps. Empty without steps.

        questions_per_second, paintings_per_second: over the window's training time. step_seconds:
        the window's median. step_seconds_max: its longest. data_wait_share: of the window's training time,
        what the host waited for data.
        """
        if not self.steps:
            return {}
        durations = [sum(self.time.seconds(*stretch) for stretch in step) for step in self.steps]
        seconds = max(sum(durations), 1e-9)
        return {
            "questions_per_second": self.questions / seconds,
            "paintings_per_second": self.paintings / seconds,
            "step_seconds": statistics.median(durations),
            "step_seconds_max": max(durations),
            "data_wait_share": self.seconds_waited / seconds,
        }


class StepClock:
    """Times optimizer steps and leaves out what is no training: evaluation, checkpoints.

    A step lasts from the end of the one before (or from the making of the clock), as `DeviceTime` has it: on CUDA it is
    the device's step, what it waited for the host included, and the host waits for nothing.
    """

    def __init__(self, time: DeviceTime) -> None:
        self._time = time
        self._began = time.mark()
        self._stretches: list[_Stretch] = []  # of the step that goes on, before its last pause
        self._pause_depth = 0
        self._begin_window()

    def step_done(self, questions: int, paintings: int) -> None:
        """Ends a step that trained on so many questions and paintings, those of all ranks."""
        now = self._time.mark()
        self._steps.append([*self._stretches, (self._began, now)])
        self._began, self._stretches = now, []
        self._questions += questions
        self._paintings += paintings

    def waiting_for(self, batches: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each is there counts as waiting for data.

        It is the host's waiting: where the device still has work queued, it need not cost the step anything.
        """
        while True:
            began = self._time.now()
            try:
                item = next(batches)
            except StopIteration:
                return
            finally:
                self._seconds_waited += self._time.now() - began
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside counts for no step; may be nested."""
        if self._pause_depth == 0:
            self._stretches.append((self._began, self._time.mark()))
        self._pause_depth += 1
        try:
            yield
        finally:
            self._pause_depth -= 1
            if self._pause_depth == 0:
                self._began = self._time.mark()

    def take_window(self) -> Window:
        """The steps since the last window, and begins a new one."""
        window = Window(self._time, self._steps, self._questions, self._paintings, self._seconds_waited)
        self._begin_window()
        return window

    def _begin_window(self) -> None:
        self._steps: list[list[_Stretch]] = []
        self._questions = self._paintings = 0
        self._seconds_waited = 0.0
