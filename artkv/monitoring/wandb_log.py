"""W&B: curves, config, pictures; into the run's folder, and to no server unless the user has said so."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from numpy.typing import NDArray

from artkv.monitoring.library_log import LibraryLog, tracked_id


class WandbLog(LibraryLog):
    """A run of W&B's in `run_dir/wandb`, offline where WANDB_MODE is not set; `wandb sync` sends it later.

    A resumed run is the same one of W&B's. artkv's steps are the axis of every curve, since W&B's own only grow: what a
    resumed run does again would be dropped.
    """

    def __init__(self, run_dir: Path, goes_on: bool) -> None:
        # console: W&B would read along with stdout and stderr. git, code: artkv's own, which are not the user's.
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "artkv",
            name=run_dir.name,
            id=tracked_id(run_dir, goes_on),
            resume="allow",
            mode=None if os.environ.get("WANDB_MODE") else "offline",
            dir=str(run_dir),
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="step")

    def close(self) -> None:
        """Ends the run of W&B's, as failed where it is not finished."""
        self._run.finish(exit_code=0 if self._is_finished else 1)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**values, "step": step})

    def _image(self, pixels: NDArray[np.uint8]) -> Any:
        return wandb.Image(pixels)

    def _histogram(self, values: NDArray[np.float64]) -> Any:
        return wandb.Histogram(values.tolist())

    def _configure(self, settings: Mapping[str, Any]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)
