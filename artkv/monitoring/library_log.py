"""What W&B and Trackio have in common: one call that logs, runs that are known by a number, and settings as a dict."""

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from artkv.files import write_whole
from artkv.monitoring.cards import AnsweredQuestion, draw_card
from artkv.monitoring.tags import tag_of
from artkv.reading import read_regular

# In the run's folder: what a tracker knows the run by, so that a resumed one goes on in it.
TRACKED_AS = "tracked_as.txt"
_ID_BYTES = 64


def tracked_id(run_dir: Path, goes_on: bool) -> str:
    """The run's number: a new one for a fresh start, else the one in the run's folder, if there is one."""
    path = run_dir / TRACKED_AS
    if goes_on and path.is_file():
        text = read_regular(path, _ID_BYTES).decode("ascii", "replace").strip()
        if re.fullmatch("[0-9a-f]{12}", text):
            return text
    number = uuid.uuid4().hex[:12]
    write_whole(path, lambda temporary: temporary.write_text(f"{number}\n", encoding="ascii"))
    return number


class LibraryLog(ABC):
    """A tracker whose library logs a dict at a step; a subclass says how."""

    _is_finished = False

    @abstractmethod
    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs what has these tags."""

    @abstractmethod
    def _image(self, pixels: NDArray[np.uint8]) -> Any:
        """What the library draws as a picture."""

    @abstractmethod
    def _histogram(self, values: NDArray[np.float64]) -> Any:
        """What it draws as a histogram."""

    @abstractmethod
    def _configure(self, settings: Mapping[str, Any]) -> None:
        """Takes settings."""

    def scalars(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Logs each metric under the tag that it has in TensorBoard."""
        self._log(step, {tag_of(kind, name): value for name, value in metrics.items()})

    def histogram(self, step: int, tag: str, values: NDArray[np.float64]) -> None:
        """Logs how the values are spread; nothing where none is finite."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._log(step, {tag: self._histogram(finite)})

    def image(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """Logs a picture, (height, width, 3) from 0 to 255."""
        self._log(step, {tag: self._image(pixels)})

    def samples(self, step: int, samples: Sequence[AnsweredQuestion]) -> None:
        """Draws each sample under the tag `works/0`, `works/1`, ..."""
        self._log(step, {f"works/{place}": self._image(draw_card(sample)) for place, sample in enumerate(samples)})

    def settings(self, settings: Mapping[str, float | str], metric: str) -> None:  # noqa: B027
        """Nothing: the whole config is there, and the tables of runs show any of it."""

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Takes the resolved config, the only text of a run, as settings."""
        self._configure(yaml.safe_load(text))

    def finished(self) -> None:
        """Remembers for `close` that the run is finished."""
        self._is_finished = True

    def flush(self) -> None:  # noqa: B027
        """Nothing: these libraries write by themselves."""
