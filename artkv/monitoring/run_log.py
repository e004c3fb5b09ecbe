"""One place to log to: metrics.jsonl, the trackers (TensorBoard) and the progress line of a run."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artkv.distributed import ToHost
from artkv.monitoring.attention_picture import draw_masses
from artkv.monitoring.cards import AnsweredQuestion
from artkv.monitoring.metrics_log import Kind, MetricsLog
from artkv.monitoring.progress import ProgressLine
from artkv.monitoring.trackers import Tracker, open_trackers


class Measured(Protocol):
    """What was measured of a step, on its way to the host."""

    def read(self) -> tuple[Mapping[str, float], str | None]:
        """The metrics, and a line for the console; waits until they are there."""


class _Pending(NamedTuple):
    """A step's line of the log that is not written yet; seconds: when it was measured."""

    step: int
    seconds: float
    measured: Measured


class RunLog:
    """Logs a run's steps into `run_dir`; on other ranks than 0 every call does nothing.

    rank: this process's rank; callers reduce over ranks before they log.
    total_steps: optimizer steps of the whole run.
    resume_step: steps done by the checkpoint that the run goes on from; what was logged for later
    steps is dropped. None for a fresh start, which drops all metrics of an earlier run in the folder.
    redo_validation: drop the validation of `resume_step` too, since it is done again.
    trackers: what shows the run, see `open_trackers`.
    """

    def __init__(
        self,
        run_dir: str | Path,
        rank: int,
        total_steps: int,
        resume_step: int | None = None,
        redo_validation: bool = False,
        trackers: Sequence[str] = ("tensorboard",),
    ) -> None:
        self._progress = ProgressLine(total_steps, steps_done=resume_step or 0, rank=rank)
        self._metrics: MetricsLog | None = None
        self._pending: _Pending | None = None
        self._trackers: list[Tracker] = []
        if rank == 0:
            run_dir = Path(run_dir)
            self._metrics = MetricsLog(run_dir / "metrics.jsonl")
            last_kept = -1 if resume_step is None else resume_step
            self._metrics.truncate_after(last_kept, redo_validation)
            self._trackers = open_trackers(trackers, run_dir, resume_step)

    def advance(self) -> None:
        """Counts one optimizer step in the progress line; call it after each step."""
        self._progress.advance()

    def train(self, step: int, metrics: Mapping[str, float], seconds: float | None = None) -> None:
        """Logs training metrics of `step`.

        Names carry units: loss, learning_rate, grad_norm, questions_per_second, step_seconds, peak_host_gib,
        skipped_steps. seconds: when they were measured, unix time; now, where it is None.
        """
        self._write(step, "train", metrics, seconds)
        self._progress.show(metrics.get("loss"), metrics.get("questions_per_second"))

    def train_once_there(self, step: int, measured: Measured) -> None:
        """Logs training metrics of `step` as soon as they are on the host: with the next call that writes."""
        self.write_pending()
        if self._metrics is not None:
            self._pending = _Pending(step, time.time(), measured)

    def write_pending(self) -> None:
        """Writes what was measured and not yet there, for which it waits; call it when it has long arrived."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._write_measured(pending, *pending.measured.read())

    def _write_measured(self, pending: _Pending, metrics: Mapping[str, float], note: str | None) -> None:
        if note is not None:
            self.note(f"step {pending.step}: {note}")
        self.train(pending.step, metrics, pending.seconds)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs scores of `step`."""
        self.write_pending()
        self._write(step, "validation", metrics)

    def shown(self, step: int, samples: Sequence[AnsweredQuestion], mass: NDArray[np.float64] | None) -> None:
        """Draws into the trackers what is of no use as numbers; call it before the step's `validation`.

        samples: the same paintings and questions each time. mass: of attention on the prefix, layers by heads.
        """
        self.write_pending()
        for tracker in self._trackers:
            if samples:
                tracker.samples(step, samples)
            if mass is not None:
                tracker.histogram(step, "attention/mass_of_heads", mass)
                tracker.image(step, "attention/mass_of_layers_and_heads", draw_masses(mass))

    def settings(self, settings: Mapping[str, float | str], metric: str) -> None:
        """Puts the run into the trackers' tables of runs; see `TensorBoardLog.settings`."""
        for tracker in self._trackers:
            tracker.settings(settings, metric)

    def finished(self) -> None:
        """Marks the run finished there."""
        for tracker in self._trackers:
            tracker.finished()

    def config(self, text: str, step: int = 0) -> None:
        """Shows the resolved config in the trackers."""
        for tracker in self._trackers:
            tracker.text("config", text, step)

    def note(self, message: str) -> None:
        """Prints a line on the console, above the progress bar."""
        self._progress.note(message)

    def close(self) -> None:
        """Writes what is pending, flushes and closes everything."""
        with ExitStack() as closing:
            for tracker in reversed(self._trackers):
                closing.callback(tracker.close)
            if self._metrics is not None:
                closing.callback(self._metrics.close)
            closing.callback(self._progress.close)
            pending, self._pending = self._pending, None
            if pending is None:
                return
            try:
                measured = pending.measured.read()
            except RuntimeError:  # of a device that has failed, which the error that ends training tells
                return
            self._write_measured(pending, *measured)

    def _write(self, step: int, kind: Kind, metrics: Mapping[str, float], seconds: float | None = None) -> None:
        if self._metrics is None:
            return
        self._metrics.append(step, kind, metrics, seconds)
        for tracker in self._trackers:
            tracker.scalars(step, kind, metrics)
            if kind == "validation":
                tracker.flush()  # validations are rare and waited for


class MetricsToHost:
    """Metrics on their way to the host, tensors in one transfer a device; nobody waits until they are read.

    Tensors must have one element. Where they differ in type they travel as float64, which holds any float32 and any
    count up to 2**53.
    """

    def __init__(self, metrics: Mapping[str, float | Tensor]) -> None:
        tensors = {name: value.detach() for name, value in metrics.items() if isinstance(value, Tensor)}
        # The tensors' places, so that the order stays.
        self._numbers = {name: 0.0 if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._on_their_way: list[tuple[list[str], ToHost]] = []
        for device in {tensor.device for tensor in tensors.values()}:
            here = {name: tensor.reshape(()) for name, tensor in tensors.items() if tensor.device == device}
            types = {tensor.dtype for tensor in here.values()}
            dtype = types.pop() if len(types) == 1 else torch.float64
            stacked = torch.stack([tensor.to(dtype) for tensor in here.values()])
            self._on_their_way.append((list(here), ToHost(stacked)))

    def read(self) -> dict[str, float]:
        """The metrics as Python numbers, in their order."""
        fetched = {
            name: number
            for names, numbers in self._on_their_way
            for name, number in zip(names, numbers.read(), strict=True)
        }
        return self._numbers | fetched
