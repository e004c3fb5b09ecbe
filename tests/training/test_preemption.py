"""Signals and a job's end stop a run after a step, and what is resumed ends as if nothing had been."""

import itertools
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import artkv.feature_cache.filling as filling
import artkv.files as whole_file
import artkv.training.validation as validation_module
from artkv.config import Config
from artkv.errors import Preempted, RunFailed, UserError
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.marker import remove_marker, write_marker
from artkv.training.preemption import SIGNALS, StopRequests, job_end_time
from tests.training_runs import Train, at_step, final_bytes

# Two epochs of 9 steps, a checkpoint each 4 steps.
STEPS = 18


@pytest.fixture
def stops() -> Iterator[StopRequests]:
    """Listens to this process's real signals."""
    requests = StopRequests()
    requests.listen(*SIGNALS)
    yield requests
    requests.stop_listening()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What `whole` gives; the first test that needs it fills it in."""
    return {}


def left_by(run_dir: Path) -> dict[str, Any]:
    """What has to be the same however often a run was stopped."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    progress = json.loads((run_dir / "best" / "checkpoint.json").read_text())["progress"]
    last = RunCheckpoints(run_dir).latest()
    assert last is not None
    return {
        "bytes": final_bytes(run_dir),
        "validations": [(r["step"], r["exact_match"]) for r in records if r["kind"] == "validation"],
        "best": (run_dir / "best").readlink().name,
        "best_progress": progress,
        "progress": last.progress,
    }


@pytest.fixture
def whole(undisturbed: dict[str, Any], run_training: Train, tmp_path: Path) -> dict[str, Any]:
    """What an undisturbed run leaves."""
    if not undisturbed:
        run_training([f"run.output_dir={tmp_path / 'undisturbed'}"])
        undisturbed |= left_by(tmp_path / "undisturbed")
    return undisturbed


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def marker(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "preempted.json").read_text())


def in_validation(number: int, patch: pytest.MonkeyPatch) -> None:
    """SIGTERM at the start of that validation, counted from 0."""
    answer_questions, validations = validation_module.answer_questions, itertools.count()

    def signalled(*arguments: Any, **options: Any) -> list[str]:
        if next(validations) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer_questions(*arguments, **options)

    patch.setattr(validation_module, "answer_questions", signalled)


# A signal inside of a step stops the run after the next one: in the middle of an epoch, where a checkpoint is due
# anyway, after an epoch's last step, whose validation is still due (or in that), and after the run's last one.
@pytest.mark.parametrize(("step", "stopped_at"), [(1, 2), (3, 4), (5, 6), (8, 9), (9, 9), (17, 18)])
def test_a_signal_stops_after_the_next_step_and_the_resume_makes_up_for_everything(
    whole: dict[str, Any],
    run_training: Train,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    stops: StopRequests,
    step: int,
    stopped_at: int,
) -> None:
    run_dir = tiny_config.run.output_dir
    rows: list[list[int]] = []
    before = time.time()
    with monkeypatch.context() as patch:
        at_step(step, send(signal.SIGUSR1), patch)
        with pytest.raises(Preempted, match=f"stopped by SIGUSR1 after step {stopped_at}"):
            run_training(requests=stops, seen_rows=rows)
    left = marker(run_dir)
    assert before <= left.pop("time") <= time.time()
    assert left == {"format_version": 1, "step": stopped_at, "reason": "SIGUSR1", "job": None}
    saved = RunCheckpoints(run_dir).latest()
    assert saved is not None
    assert saved.progress.step == stopped_at
    assert saved.progress.validation_due == (stopped_at % 9 == 0)
    assert run_training(resume="auto", seen_rows=rows).step == STEPS
    assert not (run_dir / "preempted.json").exists()
    assert left_by(run_dir) == whole
    epochs = [sorted(row for step_rows in rows[first : first + 9] for row in step_rows) for first in (0, 9)]
    assert epochs == [list(range(30))] * 2


def test_a_run_that_is_done_with_its_last_step_is_done(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, stops: StopRequests
) -> None:
    at_step(17, send(signal.SIGTERM), monkeypatch)
    assert run_training(["evaluation.each_epoch=false"], requests=stops).step == STEPS
    assert not (tiny_config.run.output_dir / "preempted.json").exists()


def test_a_stop_before_the_first_step_leaves_a_marker_and_the_next_start_validates_again(
    whole: dict[str, Any],
    run_training: Train,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    stops: StopRequests,
) -> None:
    with monkeypatch.context() as patch:
        in_validation(0, patch)
        with pytest.raises(Preempted, match="stopped by SIGTERM after step 0"):
            run_training(requests=stops)
    assert marker(tiny_config.run.output_dir)["step"] == 0
    run_training(resume="auto")
    assert left_by(tiny_config.run.output_dir) == whole


def test_a_stop_while_validating_breaks_that_off_and_the_resume_does_it_once(
    whole: dict[str, Any],
    run_training: Train,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    stops: StopRequests,
) -> None:
    with monkeypatch.context() as patch:
        in_validation(1, patch)  # the first one, before training, goes through
        with pytest.raises(Preempted, match="stopped by SIGTERM after step 9"):
            run_training(requests=stops)
    assert marker(tiny_config.run.output_dir)["step"] == 9
    run_training(resume="auto")
    assert left_by(tiny_config.run.output_dir) == whole


def test_a_validation_that_was_due_in_another_folder_is_saved_into_this_one(
    whole: dict[str, Any],
    run_training: Train,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: StopRequests,
) -> None:
    with monkeypatch.context() as patch:
        at_step(8, send(signal.SIGTERM), patch)
        with pytest.raises(Preempted, match="after step 9"):
            run_training(requests=stops)
    other = tmp_path / "other"
    rewritten = []
    rewrite = RunCheckpoints.rewrite_progress

    def rewrite_progress(checkpoints: RunCheckpoints, progress: Any) -> None:
        rewrite(checkpoints, progress)
        saved = open_checkpoint(checkpoints.folder / "step_00000009")
        rewritten.append((checkpoints.run_dir, saved.progress.best_step))

    monkeypatch.setattr(RunCheckpoints, "rewrite_progress", rewrite_progress)
    run_training([f"run.output_dir={other}", "run.keep_checkpoints=9"], resume=str(tiny_config.run.output_dir))
    assert rewritten[0] == (other, 9)
    assert (other / "best" / "checkpoint.json").is_file()
    # That of step 0 is in the metrics of the folder it was done for.
    assert left_by(other) == whole | {"validations": whole["validations"][1:]}


def test_a_kill_between_score_and_checkpoint_logs_the_validation_once(
    whole: dict[str, Any],
    run_training: Train,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "rewrite_progress", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training()
    run_training(resume="auto")
    assert left_by(tiny_config.run.output_dir) == whole


def test_signals_while_a_checkpoint_is_written_leave_it_whole(
    whole: dict[str, Any],
    run_training: Train,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    stops: StopRequests,
) -> None:
    sync, signals = whole_file.sync, 0

    def signalled(path: Path) -> None:
        nonlocal signals
        if "checkpoints" in path.parts:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                signals += 1
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file, "sync", signalled)
        with pytest.raises(Preempted, match="stopped by SIGTERM after step 5"):
            run_training(requests=stops)
    assert signals > 10
    for name in (4, 5):
        open_checkpoint(tiny_config.run.output_dir / "checkpoints" / f"step_{name:08d}").state()
    run_training(resume="auto")
    assert left_by(tiny_config.run.output_dir) == whole


def test_a_stop_before_the_first_step_keeps_what_there_was(
    run_training: Train, tiny_config: Config, stops: StopRequests
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted, match="after step 0"):
        run_training(requests=stops)
    assert marker(tiny_config.run.output_dir)["step"] == 0
    assert not (tiny_config.run.output_dir / "checkpoints").exists()
    assert run_training(resume="auto").step == STEPS


def test_a_terminal_that_is_gone_asks_to_stop_but_for_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, reason in ((lambda *_: None, "SIGHUP"), (signal.SIG_IGN, None)):
            signal.signal(signal.SIGHUP, handler)
            requests = StopRequests()
            requests.listen(*SIGNALS)
            os.kill(os.getpid(), signal.SIGHUP)
            assert requests.reason == reason
            requests.stop_listening()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wrong_start_after_a_stop_leaves_no_marker(run_training: Train, tiny_config: Config) -> None:
    """Else a script that starts again on the marker would do so for ever."""
    tiny_config.run.output_dir.mkdir()
    write_marker(tiny_config.run.output_dir, 3, "SIGTERM")
    with pytest.raises(Exception, match="has no checkpoint"):
        run_training(resume="latest")
    assert not (tiny_config.run.output_dir / "preempted.json").exists()
    remove_marker(tiny_config.run.output_dir)


def test_the_end_of_the_jobs_time_is_a_reason_from_the_set_minutes_before_it_on() -> None:
    now = 1000.0
    requests = StopRequests(now=lambda: now)
    requests.watch_walltime(1000.0 + 3600, 4.0)
    now = 4359.0
    assert requests.reason is None
    now = 4360.0
    assert requests.reason == "walltime"
    now = 1000.0
    requests.watch_walltime(1000.0 + 300, 4.0)
    now = 1224.0
    assert requests.reason is None  # a quarter of five minutes is less
    now = 1225.0
    assert requests.reason == "walltime"
    never = StopRequests(now=lambda: 1e12)
    never.watch_walltime(None, 4.0)
    never.watch_walltime(1000.0, None)
    assert never.reason is None


def test_a_run_stops_before_its_jobs_end(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 3600)))
    assert run_training(["training.num_epochs=1"]).step == 9
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time())))
    assert run_training(["run.stop_before_walltime_minutes=null", "training.num_epochs=1"], resume="auto").step == 9
    # A start that cannot gain anything in its job's time must not be queued again for ever.
    with pytest.raises(RunFailed, match="stopped by walltime before this start had gained anything on step 9"):
        run_training(resume="auto")
    assert not (tiny_config.run.output_dir / "preempted.json").exists()
    stops = StopRequests()
    at_step(2, lambda: stops.watch_walltime(0.0, 5.0), monkeypatch)
    with pytest.raises(Preempted, match="stopped by walltime after step 12"):
        run_training(["run.stop_before_walltime_minutes=null"], resume="auto", requests=stops)
    assert marker(tiny_config.run.output_dir)["job"] == "17"


@pytest.mark.parametrize("shards_before", [0, 1])
def test_a_stop_while_a_cache_is_filled_needs_a_shard_to_be_worth_a_marker(
    run_training: Train,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: StopRequests,
    shards_before: int,
) -> None:
    run_dir, features = tiny_config.run.output_dir, tmp_path / "features"
    settings = [f"frozen.feature_cache={tmp_path / 'features'}"]
    encode = filling._encode

    def signalled(*arguments: Any) -> Any:
        if len(list(features.glob("vit-*/shards/features-*"))) == shards_before:
            os.kill(os.getpid(), signal.SIGUSR1)
        yield from encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(filling, "RECORDS_A_SHARD", 4)
        patch.setattr(filling, "_encode", signalled)
        with pytest.raises(Preempted if shards_before else RunFailed, match="stopped by SIGUSR1"):
            run_training(settings, requests=stops)
    assert len(list(features.glob("vit-*/shards/features-*"))) == shards_before
    assert (run_dir / "preempted.json").exists() == bool(shards_before)
    assert run_training(settings, resume="auto").step == STEPS


def test_the_end_of_a_job_is_read_from_slurm(tmp_path: Path) -> None:
    assert job_end_time({}) is None
    assert job_end_time({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "1764032400"}) == 1764032400.0
    assert job_end_time({"SLURM_JOB_ID": "17", "PATH": "/nowhere"}) is None
    assert job_end_time({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "NONE"}) is None
    for text in ("soon", "-5", "inf", "2026-01-01T00:00:00"):
        with pytest.raises(UserError, match=f"environment: SLURM_JOB_END_TIME='{text}' is no time in seconds"):
            job_end_time({"SLURM_JOB_END_TIME": text})


@pytest.mark.parametrize(("printed", "end"), [("1764032400", 1764032400.0), ("NONE", None), ("", None)])
def test_an_older_slurm_is_asked_for_the_end_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, end: float | None
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --jobs 17 --format %e" ] || exit 9\n[ $SLURM_TIME_FORMAT = %s ]'
                      f" || exit 9\necho {printed}\n")  # fmt: skip
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert job_end_time({"SLURM_JOB_ID": "17", "PATH": os.environ["PATH"]}) == end
