"""A run's checkpoints: saved, found again, pruned. When to do so is the training loop's business."""

import os
import sys
from pathlib import Path

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import remove, write_whole
from artkv.reading import OtherVersion
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint, rewrite_progress, write_checkpoint
from artkv.run_folder.layout import (
    BEST,
    CHECKPOINTS,
    LATEST,
    best_checkpoint,
    checkpoint_name,
    checkpoints_newest_first,
    is_own_best,
    step_of,
)
from artkv.run_folder.state import Identity, Progress, TrainableState


class RunCheckpoints:
    """The checkpoints in one run's folder; what changes them is called on rank 0 alone, with the run's lock held."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / CHECKPOINTS
        self._written: set[str] = set()

    def newest_first(self) -> list[str]:
        """Their names, by step."""
        return checkpoints_newest_first(self.run_dir)

    def has(self, step: int) -> bool:
        """Whether the one of `step` is there."""
        return (self.folder / checkpoint_name(step)).is_dir()

    def latest(self) -> Checkpoint | None:
        """The newest undamaged one, None if there is none at all.

        A damaged or unreadable one is reported on stderr and the one before is taken. Raises `UserError` if all are, or
        if one is of another version of artkv, which is no damage.
        """
        names = self.newest_first()
        for place, name in enumerate(names, start=1):
            try:
                checkpoint = open_checkpoint(self.folder / name)
                if checkpoint.step != step_of(name):  # a copy: its step is not where the run stood
                    raise UserError(
                        f"{self.folder / name}: holds the checkpoint of step {checkpoint.step}; give it that one's name"
                    )
                checkpoint.check_resumable()
                return checkpoint
            except OtherVersion:
                raise
            except UserError as error:
                then = "; falling back to the checkpoint before it" if place < len(names) else ""
                print(f"artkv: {error}{then}", file=sys.stderr)
        if names:
            raise UserError(f"{self.run_dir}: no checkpoint is readable; start anew in another run.output_dir")
        return None

    def save(self, state: TrainableState, progress: Progress, identity: Identity, config: Config) -> Path:
        """Writes the checkpoint of `progress.step`, whole or absent, and then `latest`; returns its folder.

        Where this object has written that checkpoint before, as if the disk then had no room for `latest`, its progress
        alone is written.
        """
        folder = self.folder / checkpoint_name(progress.step)
        if folder.name in self._written:
            rewrite_progress(folder, progress)
        else:
            write_checkpoint(folder, state, progress, identity, config)
            self._written.add(folder.name)
        self._write_latest(folder.name)
        return folder

    def rewrite_progress(self, progress: Progress) -> None:
        """Writes what a validation changed into the checkpoint of its step, in one rename."""
        rewrite_progress(self.folder / checkpoint_name(progress.step), progress)

    def set_aside_newer(self, step: int) -> dict[str, str]:
        """Renames the checkpoints after `step` to `stale_step_N`; returns the new names by those that they had.

        A run that goes on from an earlier checkpoint writes a new history. What it leaves behind must neither
        be resumed nor count among the newest that are kept. What was set aside before stays: a number is added.
        """
        newer = {name: self._stale_name(name) for name in self.newest_first() if (step_of(name) or 0) > step}
        best = best_checkpoint(self.run_dir)
        for name, stale in newer.items():
            (self.folder / name).rename(self.folder / stale)
        if best in newer:
            (self.run_dir / BEST).unlink()
        if newer:
            self._write_latest(checkpoint_name(step))
        return newer

    def _stale_name(self, name: str) -> str:
        names = (f"stale_{name}{'' if number == 1 else f'.{number}'}" for number in range(1, 1_000_000))
        return next(stale for stale in names if not os.path.lexists(self.folder / stale))

    def mark_best(self, step: int) -> None:
        """Points the link `best` in the run's folder at the checkpoint of `step`.

        Anything else that has come to that name is its user's, and stays.
        """
        link = self.run_dir / BEST
        if os.path.lexists(link) and not is_own_best(self.run_dir):
            print(
                f"artkv: {link} is not the link that a run makes there, and stays as it is; the best checkpoint is "
                f"{checkpoint_name(step)}",
                file=sys.stderr,
            )
            return
        temporary = self.run_dir / f".{BEST}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(CHECKPOINTS) / checkpoint_name(step))
        temporary.replace(link)

    def prune(self, keep: int, best_step: int | None = None) -> None:
        """Removes all but the newest `keep` checkpoints, the one that `best` points at and that of `best_step`.

        A link is no checkpoint that artkv has made, and stays.
        """
        kept = {best_checkpoint(self.run_dir), None if best_step is None else checkpoint_name(best_step)}
        doomed = self.folder / ".pruned.tmp"
        for name in reversed(self.newest_first()[keep:]):
            if name not in kept and not (self.folder / name).is_symlink():
                remove(doomed)  # left by a killed run
                (self.folder / name).rename(doomed)  # a kill while removing leaves no half of a checkpoint
                remove(doomed)

    def _write_latest(self, name: str) -> None:
        write_whole(self.folder / LATEST, lambda path: path.write_text(f"{name}\n", encoding="utf-8"))
