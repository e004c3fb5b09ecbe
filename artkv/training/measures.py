"""What is measured of the steps between two lines of the log."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor

from artkv.distributed import World
from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes
from artkv.monitoring.stragglers import OwnTime, Stragglers
from artkv.monitoring.throughput import StepClock
from artkv.run_folder.state import Progress
from artkv.training.engine import TrainingEngine

T = TypeVar("T")

_GIB = 2**30


class StepMeasures:
    """Adds up losses, and times steps, until `read` asks for them; nothing before that waits for the device.

    Made on all ranks at once.
    """

    def __init__(self, engine: TrainingEngine, world: World) -> None:
        self._engine = engine
        self._world = world
        self._clock = StepClock()
        self._own_time = OwnTime(world.device)
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

    def reads_after_next_step(self, does: bool) -> None:
        """Whether `read` is going to be called after the next step, which some metrics are of."""
        self._engine.measure_parts(does)

    def read(
        self, learning_rate: float, progress: Progress, epochs_done: float
    ) -> tuple[dict[str, float | Tensor], str | None]:
        """The metrics since the last reading, and a line for the console where a rank is slow; all ranks meet."""
        own_seconds, note = self._stragglers.compare(self._own_time.read())
        metrics = {
            "loss": self._world.all_reduce_sum(self._loss_sum) / self._answer_tokens,
            "learning_rate": learning_rate,
            "grad_norm": self._engine.grad_norm(),
            "epoch": epochs_done,
            "questions_seen": float(progress.questions_seen),
            "skipped_steps": float(progress.skipped_steps),
            "peak_host_gib": peak_host_bytes() / _GIB,
            **self._clock.read(),
            **own_seconds,
            **self._engine.part_metrics(self._world),
        }
        if self._world.device.type == "cuda":
            metrics["peak_device_gib"] = peak_device_bytes() / _GIB
        self._loss_sum, self._answer_tokens = torch.zeros_like(self._loss_sum), torch.zeros_like(self._answer_tokens)
        return metrics, note
