"""Runs of `train` inside the test's process, and stops in the middle of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from artkv.batch import Batch
from artkv.config import Config, override_config
from artkv.distributed import World

if TYPE_CHECKING:
    from artkv.run_folder.state import Progress
    from artkv.training.engine import TrainingEngine
    from artkv.training.preemption import StopRequests

Train = Callable[..., "Progress"]


class Stopped(Exception):
    """Stands for a kill: nothing of the run is tidied up or saved after it."""


@pytest.fixture
def run_training(tiny_config: Config, one_process: World, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`run_training(overrides, resume=None, stop_before_step=None)`: one process, the tiny world.

    seen_rows, if given, collects the rows that each step trains on, fillers left out.
    requests: what may ask for a stop.
    """

    # DeepSpeed takes seconds, which tests of other parts need not wait for.
    import artkv.training.loop as loop
    from artkv.training.run import train

    def run(
        overrides: Sequence[str] = (),
        resume: str | None = None,
        stop_before_step: int | None = None,
        seen_rows: list[list[int]] | None = None,
        requests: "StopRequests | None" = None,
    ) -> "Progress":
        steps_done = 0

        def train_step(engine: "TrainingEngine", batches: list[Batch], *others: Any) -> "Tensor":
            nonlocal steps_done
            if steps_done == stop_before_step:
                raise Stopped
            steps_done += 1
            if seen_rows is not None:
                seen_rows.append([])
                for batch in batches:
                    if batch.questions.answer_token_count():
                        seen_rows[-1] += batch.rows
            return true_train_step(engine, batches, *others)

        true_train_step = loop.train_step
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", train_step)
            return train(override_config(tiny_config, overrides), resume, one_process, requests)

    return run


def final_adapter(run_dir: Path) -> dict[str, Tensor]:
    """The trainables of a run's newest checkpoint."""
    name = (run_dir / "checkpoints" / "latest").read_text().strip()
    return load_file(run_dir / "checkpoints" / name / "adapter.safetensors")


def final_bytes(run_dir: Path) -> bytes:
    """Adapter and Adam moments of a run's newest checkpoint, byte for byte."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    return (folder / "adapter.safetensors").read_bytes() + (folder / "optimizer.safetensors").read_bytes()


def at_step(number: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Does `action` inside the step of this process that is so many steps after its start, from 1."""
    import artkv.training.loop as loop

    train_step, calls = loop.train_step, iter(range(1, 10_000))

    def acting(*arguments: Any) -> Any:
        if next(calls) == number:
            action()
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", acting)
