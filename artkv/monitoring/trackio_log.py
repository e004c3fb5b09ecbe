"""Trackio: curves, config, pictures; into Trackio's database on this machine."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import trackio
from numpy.typing import NDArray

from artkv.monitoring.library_log import LibraryLog, tracked_id


class TrackioLog(LibraryLog):
    """A run in the project `artkv` of Trackio's database, which is in TRACKIO_DIR; `trackio show` draws it.

    A resumed run is the same one of Trackio's.
    """

    def __init__(self, run_dir: Path, goes_on: bool) -> None:
        with redirect_stdout(sys.stderr):  # what Trackio says is not what the command was asked for
            self._run = trackio.init(
                project="artkv",
                name=f"{run_dir.name}-{tracked_id(run_dir, goes_on)}",
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def close(self) -> None:
        """Writes what is still queued."""
        with redirect_stdout(sys.stderr):
            trackio.finish()  # and its own at the exit has nothing left to do

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def _image(self, pixels: NDArray[np.uint8]) -> Any:
        return trackio.Image(pixels)

    def _histogram(self, values: NDArray[np.float64]) -> Any:
        return trackio.Histogram(values)

    def _configure(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(settings)  # goes with the first log
