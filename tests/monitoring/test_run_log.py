"""RunLog: the fan-out, one transfer, resume, and silence on other ranks."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artkv.monitoring.attention_picture import draw_masses
from artkv.monitoring.cards import AnsweredQuestion
from artkv.monitoring.run_log import MetricsToHost, RunLog
from tests.device_queue import DeviceQueue


class Measured(NamedTuple):
    """Metrics that a test has arrive."""

    read: Callable[[], tuple[dict[str, float], str | None]]


def loss_of(loss: float, note: str | None = None) -> Measured:
    return Measured(lambda: ({"loss": loss}, note))


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_reach_file_tensorboard_and_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, rank=0, total_steps=2)
    log.config("run:\n  output_dir: x\n")
    log.train(1, {"loss": 0.5, "learning_rate": 1e-4})
    log.advance()
    sample = AnsweredQuestion(Image.new("RGB", (8, 8)), "q", "a", "p")
    log.shown(1, [sample], np.array([[0.1, 0.2]]))
    log.validation(1, {"exact_match": 0.75})
    log.note("saved")
    log.close()
    train, validation = read(tmp_path)
    assert (train["kind"], train["step"], train["loss"], train["learning_rate"]) == ("train", 1, 0.5, 1e-4)
    assert (validation["kind"], validation["exact_match"]) == ("validation", 0.75)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"train/loss", "train/learning_rate", "validation/exact_match"} <= set(events.Tags()["scalars"])
    assert sorted(events.Tags()["images"]) == ["attention/mass_of_layers_and_heads", "works/0"]
    (drawn,) = events.Images("attention/mass_of_layers_and_heads")
    pixels = np.asarray(Image.open(io.BytesIO(drawn.encoded_image_string)).convert("RGB"))
    assert drawn.step == 1
    np.testing.assert_array_equal(pixels, draw_masses(np.array([[0.1, 0.2]])))
    error = capsys.readouterr().err
    assert "step 1/2  loss 0.5" in error
    assert "saved" in error


def test_resume_drops_what_will_be_logged_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path, rank=0, total_steps=40)
    for step in (0, 10, 20, 30):
        log.train(step, {"loss": float(step)})
    log.close()
    # TensorBoard reads event files in the order of names, which begin with the second of writing.
    next(tmp_path.glob("events*")).rename(tmp_path / "events.out.tfevents.1000000000.host.1.0")
    log = RunLog(tmp_path, rank=0, total_steps=40, resume_step=20)
    log.train(30, {"loss": -1.0})
    log.close()
    expected = [(0, 0.0), (10, 10.0), (20, 20.0), (30, -1.0)]
    assert [(record["step"], record["loss"]) for record in read(tmp_path)] == expected
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == expected


def test_fresh_start_in_a_used_folder_begins_anew(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        log = RunLog(tmp_path, rank=0, total_steps=1)
        log.train(0, {"loss": loss})
        log.close()
    assert [record["loss"] for record in read(tmp_path)] == [2.0]


def test_what_is_measured_is_written_with_the_next_call_in_order_and_with_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(time, "time", lambda: next(seconds))

    def written() -> list[tuple[Any, ...]]:
        return [(record["step"], record["kind"], record["time"]) for record in read(tmp_path)]

    log = RunLog(tmp_path, rank=0, total_steps=9, trackers=())
    log.train_once_there(1, loss_of(1.0, "rank 2 is slow"))
    assert written() == []
    log.write_pending()
    log.write_pending()
    assert written() == [(1, "train", 10.0)]
    assert "step 1: rank 2 is slow" in capsys.readouterr().err
    log.train_once_there(2, loss_of(0.5))
    log.train_once_there(3, loss_of(0.25))
    assert written()[1:] == [(2, "train", 20.0)]
    log.validation(3, {"exact_match": 0.5})
    assert written()[2:] == [(3, "train", 30.0), (3, "validation", 40.0)]


def test_what_is_pending_at_the_end_is_written_unless_the_device_has_failed(tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("CUDA error")

    for step, measured in ((1, loss_of(1.0)), (2, Measured(fail))):
        log = RunLog(tmp_path, rank=0, total_steps=9, resume_step=step - 1, trackers=())
        log.train_once_there(step, measured)
        log.close()
    assert [record["step"] for record in read(tmp_path)] == [1]


def test_metrics_wait_for_the_device_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DeviceQueue()
    queue.install(monkeypatch)
    metrics = MetricsToHost({"loss": torch.tensor(0.5), "epoch": 1.5})
    assert not queue.waits
    assert metrics.read() == {"loss": 0.5, "epoch": 1.5}
    assert queue.waits == {"run_log.__init__": 1}


def test_other_ranks_write_nothing_and_fetch_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "run", rank=1, total_steps=1)
    log.train_once_there(1, Measured(read=lambda: pytest.fail("rank 1 waited for its device")))
    log.write_pending()
    log.validation(1, {"exact_match": 1.0})
    log.config("x")
    log.advance()
    log.note("x")
    log.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_tensors_are_fetched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: calls.append(len(tensors)) or stack(tensors))
    for name in ("item", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda _: pytest.fail("fetched one by one"))
    metrics = {
        "loss": torch.tensor([0.1], dtype=torch.bfloat16, requires_grad=True),
        "step_seconds": 0.25,
        "tokens": torch.tensor(2**24 + 1),  # float32 would lose the last 1
        "count": 7,
    }
    numbers = MetricsToHost(metrics).read()
    assert calls == [2]
    assert list(numbers) == list(metrics)
    assert numbers == {"loss": 0.10009765625, "step_seconds": 0.25, "tokens": 2**24 + 1, "count": 7}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_tensors_and_host_tensors_mix() -> None:
    numbers = MetricsToHost({"loss": torch.tensor(0.5, device="cuda"), "skipped_steps": torch.tensor(2)}).read()
    assert numbers == {"loss": 0.5, "skipped_steps": 2.0}
