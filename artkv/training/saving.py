"""What a run writes of itself while it trains, in step on all ranks: checkpoints, and scores into them."""

from dataclasses import dataclass

from artkv.config import Config
from artkv.distributed import World
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.run_lock import RunLock
from artkv.run_folder.state import Identity, Progress
from artkv.training.engine import TrainingEngine


@dataclass(frozen=True)
class Saver:
    """Writes into one run's folder, for as long as the run holds it. lock: None where nothing else can write there."""

    checkpoints: RunCheckpoints
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
                self.checkpoints.save(state, progress, self.identity, self.config)
                self.checkpoints.prune(self.config.run.keep_checkpoints)

        self.world.together(write)

    def save_score(self, engine: TrainingEngine, progress: Progress) -> None:
        """Writes what a validation changed into the checkpoint of its step; called on all ranks."""
        if not self.world.broadcast(self.checkpoints.has(progress.step)):  # resumed from another run's folder
            self.save(engine, progress)

        def write() -> None:
            if self.world.is_main:
                self._check_lock()
                self.checkpoints.rewrite_progress(progress)
                if progress.best_step == progress.step:
                    self.checkpoints.mark_best(progress.step)

        self.world.together(write)

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()
