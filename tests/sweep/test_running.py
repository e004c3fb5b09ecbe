"""Which runs of a sweep are started, with what, and what is left alone."""

import json
from pathlib import Path

import pytest

import artkv.cli as cli
import artkv.sweep.running as running
from artkv.errors import Preempted, UserError
from artkv.sweep.plan import Sweep
from artkv.sweep.running import check_folders, describe, do_runs, is_answered
from tests.sweep.sweeps import CHECKPOINT, answer, finish_training, make_sweep

Calls = list[tuple[str, int, tuple[str, ...]]]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return make_sweep(tmp_path, "{kv_modulation.num_prefix_tokens: [0, 4], training.seed: [1]}")


@pytest.fixture
def launched(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What would have been started; trainings and evaluations end well at once."""
    calls: Calls = []

    def launch(verb: str, ranks: int, *options: str) -> int:
        calls.append((verb, ranks, options))
        run = next(run for run in sweep.runs if any(run.name in option for option in options))
        if verb == "train":
            finish_training(run)
        else:
            answer(run, {"on": 3, "on-blank": 0})
        return 0

    monkeypatch.setattr(running, "launch", launch)
    return calls


def test_each_run_is_trained_and_answered_once(
    sweep: Sweep, launched: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert do_runs(sweep, sweep.runs, ranks=2) == {}
    assert [(verb, ranks) for verb, ranks, _ in launched] == [("train", 2), ("evaluate", 2)] * 2
    training, evaluation = launched[0][2], launched[1][2]
    assert training[:2] == ("--config", str(sweep.config_path))
    assert training[-2:] == ("--resume", "auto")
    assert "kv_modulation.enabled=false" in training
    assert f"run.output_dir={sweep.runs[0].folder}" in training
    assert evaluation == (
        "--checkpoint", str(sweep.runs[0].folder / "best"), "--split", "test", "--all-ablations",
    )  # fmt: skip
    assert "run 1 (num_prefix_tokens=4,seed=1): 2 of 2 to do, time left" in capsys.readouterr().out
    launched.clear()
    assert do_runs(sweep, sweep.runs, ranks=2) == {}
    assert launched == []
    assert [line.split() for line in describe(sweep)] == [
        ["0", "done", "num_prefix_tokens=0,seed=1"], ["1", "done", "num_prefix_tokens=4,seed=1"],
    ]  # fmt: skip


def test_answers_of_another_checkpoint_are_not_this_runs(sweep: Sweep, launched: Calls) -> None:
    run = sweep.runs[0]
    do_runs(sweep, [run], ranks=1)
    assert is_answered(sweep, run)
    (run.folder / "best").unlink()
    (run.folder / "checkpoints" / "step_00000099").mkdir()
    (run.folder / "best").symlink_to("checkpoints/step_00000099")
    assert not is_answered(sweep, run)
    launched.clear()
    do_runs(sweep, [run], ranks=1)
    assert [verb for verb, _, _ in launched] == ["evaluate"]


def test_a_run_that_fails_does_not_keep_the_others(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def launch(verb: str, ranks: int, *options: str) -> int:
        started.append(verb)
        return 3

    monkeypatch.setattr(running, "launch", launch)
    assert list(do_runs(sweep, sweep.runs, ranks=1)) == [0, 1]
    assert started == ["train", "train"]


def test_why_all_runs_failed_is_told_and_no_report_asked_for(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "launch", lambda *_: 3)
    monkeypatch.setattr(running, "check_is_apart", lambda *_: None)
    monkeypatch.setattr(running, "_check_inputs", lambda *_: None)
    monkeypatch.setattr(running, "check_split", lambda *_: None)
    assert cli.main(["sweep", str(sweep.path), "--ranks", "1"]) == 3
    told = capsys.readouterr().err
    assert "run failed: 0 (num_prefix_tokens=0,seed=1): train ended with exit code 3" in told
    assert "run failed: 1 (num_prefix_tokens=4,seed=1)" in told
    assert "is done yet" not in told


def test_a_deepspeed_file_that_is_not_there_is_told_before_the_first_run(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{training.deepspeed: [zero9.json], training.seed: [1]}")
    with pytest.raises(UserError, match=r"run 0 \(.*\): training.deepspeed = .*zero9.json"):
        check_folders(sweep)


def test_a_run_that_was_asked_to_stop_stops_the_sweep(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(verb: str, ranks: int, *options: str) -> int:
        sweep.runs[0].folder.mkdir(parents=True)
        marker = {"step": 12, "reason": "SIGTERM"}
        (sweep.runs[0].folder / "preempted.json").write_text(json.dumps(marker), encoding="utf-8")
        return 143  # a launcher's own

    monkeypatch.setattr(running, "launch", launch)
    with pytest.raises(Preempted, match="stopped by SIGTERM, in run 0 .* after step 12"):
        do_runs(sweep, sweep.runs, ranks=2)


def test_the_marker_of_an_earlier_stop_stops_nothing(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a start that ends before it has removed it: the card is gone, or the lock is another's."""
    folder = sweep.runs[0].folder
    folder.mkdir(parents=True)
    marker = {"step": 12, "reason": "SIGTERM", "time": 5.0}
    (folder / "preempted.json").write_text(json.dumps(marker), encoding="utf-8")
    monkeypatch.setattr(running, "launch", lambda verb, ranks, *options: 3)
    failed = do_runs(sweep, sweep.runs, ranks=1)
    assert sorted(failed) == [run.index for run in sweep.runs]
    assert "exit code 3" in failed[0]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_stop_ends_the_sweep_where_there_is_no_marker(
    verb: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the ranks have met, after the last step, and where questions are answered."""
    started = []

    def launch(verb_launched: str, ranks: int, *options: str) -> int:
        started.append(verb_launched)
        if verb_launched == verb:
            raise Preempted(None, "SIGHUP")
        finish_training(sweep.runs[0])
        return 0

    monkeypatch.setattr(running, "launch", launch)
    for name in ("check_is_apart", "_check_inputs", "check_split"):
        monkeypatch.setattr(running, name, lambda *_: None)
    assert cli.main(["sweep", str(sweep.path), "--ranks", "1"]) == 75
    assert started[-1] == verb
    assert len(started) == ["train", "evaluate"].index(verb) + 1
    told = f"stopped by SIGHUP, in run 0 (num_prefix_tokens=0,seed=1), during {verb}; go on with the same command"
    assert told in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told_before_the_first_run(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, f"{{model.blip2: ['{tmp_path}/blip2', '{tmp_path}/missing'], training.seed: [1]}}")
    with pytest.raises(UserError, match=r"run 1 \(.*model\.blip2 = '[^']+/missing': no such folder"):
        check_folders(sweep)


def test_the_folder_of_a_run_is_not_a_sweeps(sweep: Sweep) -> None:
    sweep.output_dir.mkdir()
    (sweep.output_dir / "checkpoints").mkdir()
    with pytest.raises(UserError, match="output_dir = .*: is the folder of a run; give another"):
        check_folders(sweep)


def test_folders_of_other_settings_are_refused(sweep: Sweep, tmp_path: Path) -> None:
    check_folders(sweep)
    finish_training(sweep.runs[0])
    check_folders(sweep)
    (tmp_path / "base.yaml").write_text("training:\n  num_epochs: 3\n", encoding="utf-8")
    changed = make_sweep(
        tmp_path, "{kv_modulation.num_prefix_tokens: [0], training.seed: [1], training.num_epochs: [3]}"
    )
    other = changed.runs[0].folder
    other.mkdir(parents=True)
    (other / "config.yaml").write_bytes((sweep.runs[0].folder / "config.yaml").read_bytes())
    with pytest.raises(
        UserError, match=r"was trained with other values of training\.num_epochs; give another output_dir"
    ):
        check_folders(changed)


def test_without_a_best_checkpoint_the_newest_is_answered(sweep: Sweep, launched: Calls) -> None:
    run = sweep.runs[1]
    finish_training(run)
    (run.folder / "best").unlink()
    (run.folder / "checkpoints" / "latest").write_text(CHECKPOINT, encoding="utf-8")
    do_runs(sweep, [run], ranks=1)
    assert [options[1] for _, _, options in launched] == [str(run.folder)]
    assert is_answered(sweep, run)
