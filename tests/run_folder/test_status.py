"""What `artkv status` finds in a run's folder while the run lives, when it has ended, and when it has died."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import artkv.cli as cli
from artkv.config import Config
from artkv.errors import Preempted, UserError
from artkv.run_folder.run_lock import RunLock, read_lock
from artkv.run_folder.status import format_status, read_status
from artkv.training.preemption import StopRequests
from tests.training_runs import Stopped, Train, at_step

STEPS = 18


def test_a_run_is_running_and_then_finished(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tiny_config.run.output_dir
    seen = []
    at_step(13, lambda: seen.append(read_status(run_dir)), monkeypatch)
    run_training()
    running, finished = seen[0], read_status(run_dir)
    assert (running.state, running.step, running.total_steps) == ("running", 12, STEPS)
    assert "1 rank(s) on" in running.detail
    assert (running.last_checkpoint, running.validation_step) == ("step_00000012", 9)
    assert running.steps_per_second is not None
    assert running.seconds_left == pytest.approx((STEPS - 12) / running.steps_per_second)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert running.loss == next(r["loss"] for r in records if r["step"] == 12)
    assert (finished.state, finished.step, finished.last_checkpoint) == ("finished", STEPS, "step_00000018")
    assert finished.best == (run_dir / "best").readlink().name

    assert cli.main(["status", str(run_dir)]) == 0
    told = capsys.readouterr().out
    for line in ("state:      finished", "step:       18 of 18, loss", "rate:       ", "checkpoint: step_00000018"):
        assert line in told
    assert "score:      validation exact match 0.000 at step 18" in told
    assert "left:" not in told
    assert "left:       0:00:" in format_status(running)


def test_a_run_that_failed_was_preempted_or_died_says_so(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tiny_config.run.output_dir
    with pytest.raises(Stopped):
        run_training(stop_before_step=6)
    failed = read_status(run_dir)
    assert (failed.state, failed.detail, failed.step) == ("failed", "Stopped: ", 6)

    stops = StopRequests()
    with monkeypatch.context() as patch:
        at_step(2, lambda: stops.watch_walltime(0.0, 0.0), patch)
        with pytest.raises(Preempted):
            run_training(resume="auto", requests=stops)
    preempted = read_status(run_dir)
    assert preempted.state == "preempted"
    assert preempted.detail == "by walltime after step 7; --resume auto goes on"

    # A killed run: its files stay as they are while it runs.
    left: dict[str, bytes] = {}

    def copy() -> None:
        left.update({name: (run_dir / name).read_bytes() for name in ("status.json", "run.lock")})

    with monkeypatch.context() as patch:
        at_step(2, copy, patch)
        run_training(resume="auto")
    (run_dir / "status.json").write_bytes(left["status.json"])
    assert read_status(run_dir).state == "dead"
    lock = json.loads(left["run.lock"])
    (run_dir / "run.lock").write_text(json.dumps(lock | {"pid_start": lock["pid_start"] - 1}))
    dead = read_status(run_dir)
    assert dead.state == "dead"
    assert "has ended without a word" in dead.detail


def test_a_finished_run_stays_so_where_a_start_is_refused_and_not_where_one_fails(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tiny_config.run.output_dir
    run_training(["training.num_epochs=1"])
    with pytest.raises(UserError, match="holds a run already"):
        run_training()
    assert read_status(run_dir).state == "finished"  # that command was refused; the run is what it was
    before = (run_dir / "status.json").read_bytes()
    seen = []

    def start_with(error: Exception) -> None:
        def failing(*arguments: Any) -> None:
            seen.append(read_status(run_dir))
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("artkv.session.build_model", failing)
            with pytest.raises(type(error), match="no such weights"):
                run_training(resume="auto")

    start_with(UserError("no such weights"))
    assert (seen[0].state, seen[0].total_steps) == ("starting", None)
    assert (run_dir / "status.json").read_bytes() == before
    start_with(RuntimeError("no such weights"))
    failed = read_status(run_dir)
    assert (failed.state, failed.detail) == ("failed", "RuntimeError: no such weights")


def test_a_run_on_another_host_lives_as_long_as_its_heartbeat_moves(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, {}, 1e6)
    assert lock.try_take()
    own = read_lock(tmp_path)
    assert own is not None
    record = replace(own, machine="n9", host="n9", time=time.time() - 7200)
    lock.release()

    def write(beat: int) -> None:
        (tmp_path / "new").write_text(json.dumps(record.__dict__ | {"beat": beat}))
        (tmp_path / "new").replace(tmp_path / "run.lock")

    write(1)
    assert read_status(tmp_path, wait_seconds=0.3).state == "dead"
    timer = threading.Timer(0.5, write, args=(2,))
    timer.start()
    assert read_status(tmp_path, wait_seconds=20).state == "starting"
    timer.join()
    record = replace(record, time=time.time())
    write(3)
    assert read_status(tmp_path, wait_seconds=0).state == "starting"


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 1
    assert "holds no run (no status.json, run.lock or checkpoints); give the run.output_dir" in capsys.readouterr().err
    with pytest.raises(UserError, match="is no folder"):
        read_status(tmp_path / "nowhere")
    (tmp_path / "status.json").write_text("[]")
    with pytest.raises(UserError, match=r"status.json: is not what artkv writes"):
        read_status(tmp_path)


def test_a_finished_run_that_is_started_again_stays_what_it_was(run_training: Train, tiny_config: Config) -> None:
    run_dir = tiny_config.run.output_dir
    run_training(["training.num_epochs=1"])
    before = {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}
    assert run_training(["training.num_epochs=1"], resume="auto").step == 9
    assert {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()} == before
    assert run_training(resume="auto").step == 18  # more epochs are asked for: it goes on
    assert read_status(run_dir).total_steps == 18
    assert run_training(["training.num_epochs=1"], resume="auto").step == 18  # fewer: there is nothing to do
    assert read_status(run_dir).total_steps == 18


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_finished_run_that_was_not_recorded_so_is_when_it_is_started_again(
    run_training: Train, tiny_config: Config, state: str
) -> None:
    """As after a kill between the last score and the end, or in a start that would have had nothing to do."""
    run_dir = tiny_config.run.output_dir
    run_training(["training.num_epochs=1"])
    record = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps(record | {"state": state, "ended": None}))
    run_training(["training.num_epochs=1"], resume="auto")
    status = read_status(run_dir)
    assert (status.state, status.step, status.total_steps) == ("finished", 9, 9)
