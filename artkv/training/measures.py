"""What is measured of the steps between two lines of the log."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from artkv.distributed import ToHost, World
from artkv.monitoring.device_time import DeviceTime
from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes
from artkv.monitoring.run_log import MetricsToHost
from artkv.monitoring.stragglers import OwnTime, Stragglers
from artkv.monitoring.throughput import StepClock, Window
from artkv.run_folder.state import Progress
from artkv.training.engine import TrainingEngine

T = TypeVar("T")

_GIB = 2**30
_NONFINITE_IN_A_ROW = "nonfinite_in_a_row"


class MeasuredSteps(NamedTuple):
    """What was measured of some steps, on its way to the host.

    parts: names of metrics that mean nothing if the last step was skipped. by_rank: own seconds of several ranks.
    """

    metrics: MetricsToHost
    parts: list[str]
    window: Window
    by_rank: ToHost | None
    compare: Callable[[list[float]], tuple[dict[str, float], str | None]]

    def read(self) -> tuple[dict[str, float], str | None]:
        """The metrics, and a line for the console where a rank is slow; waits until the device is done with the steps.

        Call it in the order of steps.
        """
        metrics = self.metrics.read()
        if metrics.pop(_NONFINITE_IN_A_ROW):
            metrics = {name: value for name, value in metrics.items() if name not in self.parts}
        own_seconds, note = ({}, None) if self.by_rank is None else self.compare(self.by_rank.read())
        return {**metrics, **self.window.rates(), **own_seconds}, note


class StepMeasures:
    """Adds up losses, and times steps, until they are taken; nothing here waits for the device.

    Made on all ranks at once.
    """

    def __init__(self, engine: TrainingEngine, world: World) -> None:
        self._engine = engine
        self._world = world
        time = DeviceTime(world.device)
        self._clock, self._own_time = StepClock(time), OwnTime(time)
        engine.forward_timer = self._own_time.passing
        self._stragglers = Stragglers(world)
        self._loss_sum = torch.zeros((), device=world.device)
        self._answer_tokens = torch.zeros((), device=world.device)

    def waits_for(self, batches: Iterator[T]) -> Iterator[T]:
        """`batches`, each of which is a step; the time until each is there counts as waiting for data."""
        return self._own_time.waits_for(self._clock.waiting_for(batches))

    def paused(self) -> AbstractContextManager[None]:
        """The time inside counts for no step."""
        return self._clock.paused()

    def step_done(self, loss_sum: Tensor, answer_tokens: Tensor, questions: int, paintings: int) -> None:
        """Ends a step. loss_sum: this rank's; all else is that of all ranks."""
        self._loss_sum += loss_sum
        self._answer_tokens += answer_tokens
        self._clock.step_done(questions, paintings)

    def taken_after_next_step(self, are: bool) -> None:
        """Whether `take` is going to be called after the next step, which some metrics are of."""
        self._engine.measure_parts(are)

    def take(self, learning_rate: float, progress: Progress, epochs_done: float) -> MeasuredSteps:
        """What was measured since it was taken last; all ranks meet, on the device, and none waits for it."""
        skipped, nonfinite_in_a_row = self._engine.skipped_steps.counts_on_device()
        parts = self._engine.part_metrics(self._world)
        metrics = {
            "loss": self._world.all_reduce_sum(self._loss_sum) / self._answer_tokens,
            "learning_rate": learning_rate,
            "grad_norm": self._engine.grad_norm(),
            "epoch": epochs_done,
            "questions_seen": float(progress.questions_seen),
            "skipped_steps": skipped,
            "peak_host_gib": peak_host_bytes() / _GIB,
            **parts,
            _NONFINITE_IN_A_ROW: nonfinite_in_a_row,
        }
        if self._world.device.type == "cuda":
            metrics["peak_device_gib"] = peak_device_bytes() / _GIB
        self._loss_sum, self._answer_tokens = torch.zeros_like(self._loss_sum), torch.zeros_like(self._answer_tokens)
        by_rank = self._stragglers.share(self._own_time.read())
        return MeasuredSteps(
            MetricsToHost(metrics), list(parts), self._clock.take_window(), by_rank, self._stragglers.compare
        )
