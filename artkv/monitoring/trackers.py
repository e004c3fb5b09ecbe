"""Where a run is shown beside its metrics.jsonl: TensorBoard by default, W&B and Trackio if they are asked for."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from artkv.errors import UserError
from artkv.monitoring.cards import AnsweredQuestion

# Those that are libraries of their own, which artkv does not install by itself: setup.py's extras of these names.
_EXTRAS = ("wandb", "trackio")


class Tracker(Protocol):
    """What shows a run's curves, settings and pictures; see `TensorBoardLog`, which is one."""

    def scalars(self, step: int, kind: str, metrics: Mapping[str, float]) -> None: ...
    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None: ...
    def image(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None: ...
    def samples(self, step: int, samples: Sequence[AnsweredQuestion]) -> None: ...
    def settings(self, settings: Mapping[str, float | str], metric: str) -> None: ...
    def finished(self) -> None: ...
    def text(self, tag: str, text: str, step: int = 0) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker whose library is not installed."""
    for name in names:
        if name not in _EXTRAS:
            continue
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # the latter is a folder of that name, such as W&B itself makes
            raise UserError(
                f"run.trackers: {name} is not installed; pip install 'artkv[{name}]', or leave it out",
                on_all_ranks=True,
            )


def open_trackers(names: Sequence[str], run_dir: Path, resume_step: int | None) -> list[Tracker]:
    """The trackers of a run, in the order of their names.

    resume_step: steps done by the checkpoint that the run goes on from, None for a fresh start.

    What goes wrong with W&B or Trackio, at any call, ends neither the run nor its other trackers.
    """
    trackers: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            from artkv.monitoring.tensorboard_log import TensorBoardLog

            # Steps start at 0 (a validation before training), and TensorBoard purges from a step on.
            trackers.append(TensorBoardLog(run_dir, purge_step=0 if resume_step is None else resume_step + 1))
        else:
            trackers.append(_Guarded(name, run_dir, resume_step is not None))
    return trackers


def _open(name: str, run_dir: Path, goes_on: bool) -> Tracker:
    if name == "wandb":
        from artkv.monitoring.wandb_log import WandbLog

        return WandbLog(run_dir, goes_on)
    from artkv.monitoring.trackio_log import TrackioLog

    return TrackioLog(run_dir, goes_on)


class _Guarded:
    """A tracker of another's library, which is told of and left out from its first error on."""

    def __init__(self, name: str, run_dir: Path, goes_on: bool) -> None:
        self._name = name
        self._tracker: Tracker | None = None

        def begin() -> None:
            self._tracker = _open(name, run_dir, goes_on)

        self._call(begin)

    def scalars(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        self._tell(lambda tracker: tracker.scalars(step, kind, metrics))

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        self._tell(lambda tracker: tracker.histogram(step, tag, values))

    def image(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        self._tell(lambda tracker: tracker.image(step, tag, pixels))

    def samples(self, step: int, samples: Sequence[AnsweredQuestion]) -> None:
        self._tell(lambda tracker: tracker.samples(step, samples))

    def settings(self, settings: Mapping[str, float | str], metric: str) -> None:
        self._tell(lambda tracker: tracker.settings(settings, metric))

    def finished(self) -> None:
        self._tell(lambda tracker: tracker.finished())

    def text(self, tag: str, text: str, step: int = 0) -> None:
        self._tell(lambda tracker: tracker.text(tag, text, step))

    def flush(self) -> None:
        self._tell(lambda tracker: tracker.flush())

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._call(lambda: call(tracker))

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a library's, over networks and services: anything may come
            self._tracker = None
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
            told = f"artkv: run.trackers: {self._name} failed ({reason}); training goes on without it"
            print(told, file=sys.stderr)
