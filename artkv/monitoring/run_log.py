"""One place to log to: metrics.jsonl, the trackers (TensorBoard) and the progress line of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artkv.monitoring.attention_picture import draw_masses
from artkv.monitoring.cards import AnsweredQuestion
from artkv.monitoring.metrics_log import Kind, MetricsLog
from artkv.monitoring.progress import ProgressLine
from artkv.monitoring.trackers import Tracker, open_trackers


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

    def train(self, step: int, metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Logs training metrics of `step`; returns them as plain numbers, empty on other ranks.

        0-d tensors may be on a device: all of them are fetched in one transfer, the only time that
        logging waits for the device. Names carry units: loss, learning_rate, grad_norm,
        questions_per_second, step_seconds, peak_host_gib, skipped_steps.
        """
        return self._write(step, "train", metrics)

    def validation(self, step: int, metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Logs scores of `step`; returns them as `train` does."""
        return self._write(step, "validation", metrics)

    def shown(self, step: int, samples: Sequence[AnsweredQuestion], mass: NDArray[np.float64] | None) -> None:
        """Draws into the trackers what is of no use as numbers; call it before the step's `validation`.

        samples: the same paintings and questions each time. mass: of attention on the prefix, layers by heads.
        """
        for tracker in self._trackers:
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
        """Flushes and closes everything."""
        self._progress.close()
        if self._metrics is not None:
            self._metrics.close()
        for tracker in self._trackers:
            tracker.close()

    def _write(self, step: int, kind: Kind, metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
        if self._metrics is None:
            return {}
        numbers = to_numbers(metrics)
        self._metrics.append(step, kind, numbers)
        for tracker in self._trackers:
            tracker.scalars(step, kind, numbers)
            if kind == "validation":
                tracker.flush()  # validations are rare and waited for
        if kind == "train":
            self._progress.show(numbers.get("loss"), numbers.get("questions_per_second"))
        return numbers


def to_numbers(metrics: Mapping[str, float | Tensor]) -> dict[str, float]:
    """The metrics as Python numbers in their order, tensors in one transfer a device.

    Tensors must have one element. They travel as float64, which holds any float32 and any count up
    to 2**53.
    """
    tensors = {name: value.detach() for name, value in metrics.items() if isinstance(value, Tensor)}
    fetched: dict[str, float] = {}
    for device in {tensor.device for tensor in tensors.values()}:
        here = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        stacked = torch.stack([tensor.reshape(()).to(torch.float64) for tensor in here.values()])
        fetched |= zip(here, stacked.tolist(), strict=True)
    return {name: fetched[name] if isinstance(value, Tensor) else value for name, value in metrics.items()}
