"""What the host waits for in a run, on a device that is always behind it; and that no line of the log is lost."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import artkv.training.loop as loop
import artkv.training.measures as measures
from artkv.config import Config
from artkv.errors import RunFailed
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.training.engine import TrainingEngine
from tests.device_queue import DeviceQueue
from tests.training.test_run import poison
from tests.training_runs import Stopped, Train

# Of an epoch's nine steps, checkpoints after the fourth, the eighth and the last one.
SAVED = (4, 8, 9)
EVERY_STEP = ["training.num_epochs=1", "run.log_every=1"]


def logged(run_dir: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["kind"] == "train"]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> DeviceQueue:
    """A device to which a run's copies and moments belong, though all is computed on the CPU."""
    queue = DeviceQueue()
    queue.install(monkeypatch)
    monkeypatch.setattr(measures, "DeviceTime", lambda device: queue.time())
    return queue


def waits_of_steps(queue: DeviceQueue, monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """For what the host waits from the launch of each step on, until that of the next; the last one up to the end."""
    steps: list[Counter[str]] = []
    step_together, is_between = loop.step_together, False

    def step(*arguments: Any) -> Any:
        nonlocal is_between
        is_between = False
        queue.waits = Counter()
        steps.append(queue.waits)
        report = step_together(*arguments)
        is_between = True
        return report

    def at_once(name: str) -> None:
        fetch = getattr(torch.Tensor, name)

        def fetched(self: torch.Tensor) -> Any:
            if is_between:
                queue.waits[name] += 1  # on a card it would drain the queue
            return fetch(self)

        monkeypatch.setattr(torch.Tensor, name, fetched)

    for name in ("item", "__float__", "__int__", "__bool__", "cpu"):
        at_once(name)
    monkeypatch.setattr(loop, "step_together", step)
    return steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_a_step_that_is_logged_the_host_waits_for_no_more_than_in_any_other(
    run_training: Train, tiny_config: Config, queue: DeviceQueue, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Votes to stop, which were sent when the step began, are all that it waits for unless it saves."""
    steps = waits_of_steps(queue, monkeypatch)
    run_training([f"model.dtype={dtype}", "training.num_epochs=1", "run.log_every=2"])
    assert len(steps) == 9
    for number, waits in enumerate(steps, start=1):
        if number not in SAVED:
            assert waits == {"stops.meet": 1}, number
        else:
            assert {"skipped_steps.step_done", "run_log.__init__"} <= waits.keys(), number  # so the queue is not blind
    assert [record["step"] for record in logged(tiny_config.run.output_dir)] == [2, 4, 6, 8, 9]


def test_a_line_is_written_a_step_later_and_before_a_checkpoint(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tiny_config.run.output_dir
    written: list[list[int]] = []
    at_checkpoints: list[tuple[int, int]] = []
    train_step, save = loop.train_step, RunCheckpoints.save

    def step(*arguments: Any) -> Any:
        written.append([record["step"] for record in logged(run_dir)])
        return train_step(*arguments)

    def saved(self: RunCheckpoints, state: Any, progress: Any, *others: Any) -> Any:
        at_checkpoints.append((progress.step, logged(run_dir)[-1]["step"]))
        return save(self, state, progress, *others)

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(RunCheckpoints, "save", saved)
    run_training(["training.num_epochs=1", "run.log_every=2"])
    # While a step is launched the line of the one before is on its way, but after a checkpoint.
    there = [step - 1 if step - 1 in SAVED else step - 2 for step in range(1, 10)]
    assert written == [[step for step in (2, 4, 6, 8, 9) if step <= last] for last in there]
    assert at_checkpoints == [(step, step) for step in SAVED]


def test_a_line_on_its_way_is_written_when_an_error_ends_training(
    run_training: Train, tiny_config: Config, queue: DeviceQueue
) -> None:
    with pytest.raises(Stopped):
        run_training(EVERY_STEP, stop_before_step=6)
    assert [record["step"] for record in logged(tiny_config.run.output_dir)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lines_say_the_same_however_late_they_come(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """What each step says is what its own tensors held at its end: skipped steps, norms, the loss."""
    poison(lambda call: call in (2, 5), monkeypatch)
    at_once: list[dict[str, float]] = []
    step = TrainingEngine.step

    def observed(self: TrainingEngine, learning_rate: float) -> None:
        step(self, learning_rate)
        skipped, _ = self.skipped_steps.counts(waits=True)
        at_once.append({"learning_rate": learning_rate, "skipped_steps": skipped, "grad_norm": float(self.grad_norm())})

    monkeypatch.setattr(TrainingEngine, "step", observed)
    run_training([f"model.dtype={dtype}", *EVERY_STEP])
    records = logged(tiny_config.run.output_dir)
    expected = at_once[-9:]  # the first one makes Adam's state
    for record, values in zip(records, expected, strict=True):
        was_skipped = values["grad_norm"] == torch.inf
        assert record["learning_rate"] == values["learning_rate"]
        assert record["skipped_steps"] == values["skipped_steps"]
        assert record["grad_norm"] == (None if was_skipped else values["grad_norm"])
        assert (record["loss"] is None) == was_skipped
        assert any(name.startswith("update_to_weight/") for name in record) == (not was_skipped)
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_a_run_that_diverges_ends_a_step_later_and_logs_it(
    run_training: Train, tiny_config: Config, queue: DeviceQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(lambda call: call >= 4, monkeypatch)
    with pytest.raises(RunFailed, match="step 6: loss or gradient was not finite in 2 steps in a row"):
        run_training([*EVERY_STEP, "training.max_nonfinite_steps=2"])
    records = logged(tiny_config.run.output_dir)
    assert [(record["step"], record["skipped_steps"]) for record in records[3:]] == [(4, 0), (5, 1), (6, 2), (7, 3)]
