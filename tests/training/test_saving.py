"""A disk that is full, or read-only, for a while or for good, while a run trains on it: real disks."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import artkv.training.saving as saving
from artkv.config import Config
from artkv.errors import Preempted, RunFailed, UserError
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.status import read_status
from artkv.training.preemption import StopRequests
from tests.mounted import Disk
from tests.training_runs import Train, at_step, final_bytes

STEPS = 18
NO_ROOM = "No space left on device"
big = pytest.mark.parametrize("disk", [12], indirect=True)


@pytest.fixture
def expected(run_training: Train, tiny_config: Config) -> bytes:
    """What a run that nothing disturbs ends with."""
    run_training()
    return final_bytes(tiny_config.run.output_dir)


@pytest.fixture
def run_dir(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)  # at each step
    return disk.folder / "run"


def at_steps(actions: dict[int, Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> None:
    for number, action in actions.items():
        at_step(number, lambda action=action: action() and None, monkeypatch)  # type: ignore[misc]


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir())


def logged(run_dir: Path) -> list[tuple[int, str]]:
    content = (run_dir / "metrics.jsonl").read_bytes()
    assert content.endswith(b"\n")
    return [(record["step"], record["kind"]) for record in map(json.loads, content.splitlines())]


@big
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    expected: bytes, run_training: Train, run_dir: Path, disk: Disk, tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    at_steps({3: disk.fill, 7: disk.free, 9: disk.fill, 11: disk.free}, monkeypatch)
    assert run_training([f"run.output_dir={run_dir}", "run.keep_checkpoints=9"]).step == STEPS
    told = capsys.readouterr().err
    assert told.count("could not be saved: ") == 2
    assert f"artkv: step 4 could not be saved: {run_dir}/checkpoints" in told
    assert f"{NO_ROOM}; training goes on, and tries again about each" in told
    assert "for 30 minutes (run.save_retry_minutes); make room" in told
    assert "artkv: step 7 is saved" in told
    assert f"metrics.jsonl: cannot be written ({NO_ROOM})" in told
    assert "metrics.jsonl: is written again\n" in told
    assert "Traceback" not in told
    # Each step that was due is there, or the next one that there was room for.
    assert checkpoints(run_dir) == [f"step_{step:08d}" for step in (7, 8, 11, 12, 16, 18)]
    assert final_bytes(run_dir) == expected
    assert logged(run_dir) == logged(tiny_config.run.output_dir)
    events = EventAccumulator(str(run_dir)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8, 9, 10, 12, 14, 16, 18]
    assert read_status(run_dir).state == "finished"


@big
@pytest.mark.parametrize("minutes", ["0", "0.0001"])
def test_a_disk_that_stays_full_fails_the_run_which_can_be_resumed(
    expected: bytes, run_training: Train, run_dir: Path, disk: Disk, minutes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"run.output_dir={run_dir}", f"run.save_retry_minutes={minutes}"]
    with monkeypatch.context() as patch:
        at_steps({6: disk.fill}, patch)
        with pytest.raises(RunFailed, match=f"could not be saved.*{NO_ROOM}; the newest checkpoint is step_00000004"):
            run_training(settings)
    assert checkpoints(run_dir) == ["step_00000004"]
    open_checkpoint(run_dir).check_resumable()
    status = read_status(run_dir)
    assert status.state == "failed"
    assert status.detail.startswith(("RunFailed: step 8 could not be saved", "RunFailed: step 9 could not be saved"))
    assert logged(run_dir)[:4] == [(0, "validation"), (2, "train"), (4, "train"), (6, "train")]
    disk.free()
    assert run_training(settings, resume="auto").step == STEPS
    assert final_bytes(run_dir) == expected


@big
def test_a_stop_that_cannot_be_saved_does_not_say_that_it_is(
    run_training: Train, run_dir: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stops = StopRequests()

    def stop() -> None:
        disk.fill()
        stops._note(signal.SIGTERM, None)

    with monkeypatch.context() as patch:
        at_steps({6: stop}, patch)
        with pytest.raises(RunFailed, match=f"stopped by SIGTERM after step 7, which could not be saved .*{NO_ROOM}"):
            run_training([f"run.output_dir={run_dir}"], requests=stops)
    assert not (run_dir / "preempted.json").exists()
    assert read_status(run_dir).state == "failed"
    assert checkpoints(run_dir) == ["step_00000004"]
    disk.free()

    # With room, it is.
    stops = StopRequests()
    with monkeypatch.context() as patch:
        at_steps({2: lambda: stops._note(signal.SIGTERM, None)}, patch)
        with pytest.raises(Preempted):
            run_training([f"run.output_dir={run_dir}"], resume="auto", requests=stops)
    assert json.loads((run_dir / "preempted.json").read_text())["step"] == 7


@big
def test_the_last_checkpoint_is_waited_for(
    expected: bytes, run_training: Train, run_dir: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []
    attempt = saving.Saver._attempt

    def watched(saver: saving.Saver) -> Any:
        tries.append(time.monotonic())
        if len(tries) == 10:
            disk.free()
        return attempt(saver)

    monkeypatch.setattr(saving.Saver, "_attempt", watched)
    at_steps({18: disk.fill}, monkeypatch)
    assert run_training([f"run.output_dir={run_dir}"]).step == STEPS
    assert len(tries) >= 10
    assert final_bytes(run_dir) == expected
    assert open_checkpoint(run_dir).progress.best_step is not None
    assert open_checkpoint(run_dir).progress.validation_due is False
    assert read_status(run_dir).state == "finished"


@big
def test_a_run_that_waits_for_room_at_its_end_can_be_stopped(
    run_training: Train, run_dir: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = StopRequests()
    at_steps({18: disk.fill}, monkeypatch)
    finish = saving.Saver.finish

    def stopped(saver: saving.Saver, is_asked: Callable[[], bool]) -> None:
        stops._note(signal.SIGTERM, None)
        finish(saver, is_asked)

    monkeypatch.setattr(saving.Saver, "finish", stopped)
    with pytest.raises(
        RunFailed, match="was to stop after step 18, which is not saved; the newest checkpoint is step_"
    ):
        run_training([f"run.output_dir={run_dir}"], requests=stops)


def test_a_disk_that_becomes_read_only_is_told_and_waited_for(
    run_training: Train, run_dir: Path, disk: Disk, tiny_config: Config, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The checkpoints are on another disk than the rest."""
    output = tiny_config.run.output_dir
    output.mkdir()
    (output / "checkpoints").symlink_to(disk.folder)
    at_steps({3: disk.read_only, 6: lambda: disk.read_only(False)}, monkeypatch)
    run_training(["training.num_epochs=1", "run.keep_checkpoints=9"])
    told = capsys.readouterr().err
    assert "step 4 could not be saved: " in told
    assert "Read-only file system" in told
    assert "step 6 is saved" in told
    assert checkpoints(output) == ["step_00000006", "step_00000008", "step_00000009"]
    assert (output / "best").resolve() == disk.folder / "step_00000009"


def test_old_checkpoints_that_cannot_be_removed_end_no_run(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("artkv.run_folder.checkpoints.remove", refused)
    run_training(["training.num_epochs=1", "run.keep_checkpoints=1"])
    assert checkpoints(tiny_config.run.output_dir) == ["step_00000004", "step_00000008", "step_00000009"]
    assert capsys.readouterr().err.count("old checkpoints cannot be removed: ") == 1


def test_a_full_disk_at_the_start_is_a_wrong_input(run_training: Train, run_dir: Path, disk: Disk) -> None:
    disk.fill()
    with pytest.raises(
        UserError, match=rf"run.output_dir = {run_dir}: .* cannot be written \({NO_ROOM}\); give another"
    ):
        run_training([f"run.output_dir={run_dir}"])
    assert [path.name for path in disk.folder.iterdir()] == ["ballast"]


@big
def test_a_full_disk_keeps_the_lock_alive(
    run_training: Train, run_dir: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look() -> None:
        disk.fill()
        beats = [json.loads((run_dir / "run.lock").read_text())["beat"]]
        lock = next(thread for thread in threading.enumerate() if thread.name == "run lock")
        owner = lock._target.__self__  # type: ignore[attr-defined]
        for _ in range(12):
            owner._renew()
            beats.append(json.loads((run_dir / "run.lock").read_text())["beat"])
        assert beats == sorted(set(beats))
        owner.check()
        seen.append(read_status(run_dir).state)
        disk.free()

    at_steps({3: look}, monkeypatch)
    run_training([f"run.output_dir={run_dir}", "training.num_epochs=1"])
    assert seen == ["running"]
    assert not (run_dir / "run.lock").exists()


def test_a_copy_in_the_place_of_best_stays_and_ends_no_run(
    run_training: Train, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny_config.run.output_dir
    run_training(["training.num_epochs=1"])
    (run_dir / "best").unlink()
    shutil.copytree(run_dir / "checkpoints" / "step_00000009", run_dir / "best")
    shutil.copytree(run_dir / "checkpoints" / "step_00000009", run_dir / "checkpoints" / "step_00000009_keep")
    (run_dir / "checkpoints" / "step_notes.txt").write_text("mine")
    settings = ["run.keep_checkpoints=1"]
    before = {path: path.read_bytes() for name in ("best", "checkpoints/step_00000009_keep")
              for path in (run_dir / name).iterdir()}  # fmt: skip
    assert run_training(settings, resume="auto").step == STEPS
    assert "best is not the link that a run makes there, and stays as it is" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())
    # The newest, the best, and what is the user's.
    assert checkpoints(run_dir) == ["step_00000009", "step_00000009_keep", "step_00000018"]
    assert (run_dir / "checkpoints" / "step_notes.txt").read_text() == "mine"
