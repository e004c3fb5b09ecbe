"""A run's checkpoints: saved, found again, pruned. When to do so is the training loop's business."""

import shutil
import sys
from pathlib import Path

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import write_whole
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint, rewrite_progress, write_checkpoint
from artkv.run_folder.layout import (
    BEST,
    CHECKPOINTS,
    LATEST,
    best_checkpoint,
    checkpoint_name,
    checkpoints_newest_first,
)
from artkv.run_folder.state import Identity, Progress, TrainableState


class RunCheckpoints:
    """The checkpoints in one run's folder; what changes them is called on rank 0 alone, with the run's lock held."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / CHECKPOINTS

    def newest_first(self) -> list[str]:
        """Their names, by step."""
        return checkpoints_newest_first(self.run_dir)

    def has(self, step: int) -> bool:
        """Whether the one of `step` is there."""
        return (self.folder / checkpoint_name(step)).is_dir()

    def latest(self) -> Checkpoint | None:
        """The newest undamaged one, None if there is none at all.

        A damaged one is reported on stderr and the one before is taken. Raises `UserError` if all are
        damaged.
        """
        names = self.newest_first()
        for name in names:
            try:
                checkpoint = open_checkpoint(self.folder / name)
                checkpoint.check_resumable()
                return checkpoint
            except UserError as error:
                print(f"artkv: {error}; falling back to the checkpoint before it", file=sys.stderr)
        if names:
            raise UserError(f"{self.run_dir}: no checkpoint is readable; start anew in another run.output_dir")
        return None

    def save(self, state: TrainableState, progress: Progress, identity: Identity, config: Config) -> Path:
        """Writes the checkpoint of `progress.step`, whole or absent, and then `latest`; returns its folder."""
        folder = self.folder / checkpoint_name(progress.step)
        write_checkpoint(folder, state, progress, identity, config)
        self._write_latest(folder.name)
        return folder

    def rewrite_progress(self, progress: Progress) -> None:
        """Writes what a validation changed into the checkpoint of its step, in one rename."""
        rewrite_progress(self.folder / checkpoint_name(progress.step), progress)

    def set_aside_newer(self, step: int) -> list[str]:
        """Renames the checkpoints after `step` to `stale_step_N`, and returns the names that they had.

        A run that goes on from an earlier checkpoint writes a new history. What it leaves behind must neither
        be resumed nor count among the newest that are kept.
        """
        newer = [name for name in self.newest_first() if name > checkpoint_name(step)]
        for name in newer:
            shutil.rmtree(self.folder / f"stale_{name}", ignore_errors=True)
            (self.folder / name).rename(self.folder / f"stale_{name}")
        if best_checkpoint(self.run_dir) in newer:
            (self.run_dir / BEST).unlink()
        if newer:
            self._write_latest(checkpoint_name(step))
        return newer

    def mark_best(self, step: int) -> None:
        """Points the link `best` in the run's folder at the checkpoint of `step`."""
        temporary = self.run_dir / f".{BEST}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(CHECKPOINTS) / checkpoint_name(step))
        temporary.replace(self.run_dir / BEST)

    def prune(self, keep: int) -> None:
        """Removes all but the newest `keep` checkpoints and the best one."""
        names = self.newest_first()
        doomed = self.folder / ".pruned.tmp"
        for name in reversed(names[keep:]):
            if name != best_checkpoint(self.run_dir):
                shutil.rmtree(doomed, ignore_errors=True)  # left by a killed run
                (self.folder / name).rename(doomed)  # a kill while removing leaves no half of a checkpoint
                shutil.rmtree(doomed)

    def _write_latest(self, name: str) -> None:
        write_whole(self.folder / LATEST, lambda path: path.write_text(f"{name}\n", encoding="utf-8"))
