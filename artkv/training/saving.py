"""What a run writes of itself while it trains, in step on all ranks: checkpoints, and scores into them."""

from dataclasses import dataclass
from pathlib import Path

from artkv.config import Config
from artkv.distributed import World
from artkv.run_folder.checkpoint import has_checkpoint, mark_best, prune_checkpoints, rewrite_progress, save_checkpoint
from artkv.run_folder.run_lock import RunLock
from artkv.run_folder.state import Identity, Progress
from artkv.training.engine import TrainingEngine


@dataclass(frozen=True)
class Saver:
    """Writes into one run's folder, for as long as the run holds it. lock: None where nothing else can write there."""

    run_dir: Path
    config: Config
    identity: Identity
    lock: RunLock | None
    world: World

    def save(self, engine: TrainingEngine, progress: Progress) -> None:
        """Writes a checkpoint; called on all ranks, which gather it."""
        state = engine.state(keep=self.world.is_main)

        def write() -> None:
            if state is not None:
                self._check_lock()
                save_checkpoint(self.run_dir, state, progress, self.identity, self.config)
                prune_checkpoints(self.run_dir, self.config.run.keep_checkpoints)

        self.world.together(write)

    def save_score(self, engine: TrainingEngine, progress: Progress) -> None:
        """Writes what a validation changed into the checkpoint of its step; called on all ranks."""
        if not self.world.broadcast(has_checkpoint(self.run_dir, progress.step)):  # resumed from another run's folder
            self.save(engine, progress)

        def write() -> None:
            if self.world.is_main:
                self._check_lock()
                rewrite_progress(self.run_dir, progress)
                if progress.best_step == progress.step:
                    mark_best(self.run_dir, progress.step)

        self.world.together(write)

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()
