"""A run's checkpoints: which is the latest and the best, which are kept, and that a kill leaves whole ones alone."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.state import Progress
from tests.run_folder.test_checkpoint import save


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.mark_best(2)
    checkpoints.prune(keep=2)
    assert [name[-1] for name in checkpoints.newest_first()] == ["5", "4", "2"]
    assert [checkpoints.has(step) for step in (1, 2, 3)] == [False, True, False]


def test_a_score_is_written_into_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    before, _ = open_checkpoint(save(tmp_path, 5)), save(tmp_path, 10)
    scored = Progress(step=5, questions_seen=8, best_exact_match=0.25, best_step=5)
    RunCheckpoints(tmp_path).rewrite_progress(scored)
    after = open_checkpoint(before.path)
    assert after.progress == scored
    assert after.identity == before.identity
    assert after.checksums == before.checksums
    after.check_resumable()


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest() is None
    path = save(tmp_path, 5)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"
    (path / "adapter.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint is readable"):
        checkpoints.latest()


def test_going_back_sets_the_newer_history_aside(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000015" / "adapter.safetensors").unlink()  # damaged
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.mark_best(15)
    assert checkpoints.set_aside_newer(5) == ["step_00000015", "step_00000010"]
    assert checkpoints.newest_first() == ["step_00000005"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000005\n"
    assert not (tmp_path / "best").exists()
    assert (tmp_path / "checkpoints" / "stale_step_00000010").is_dir()
    save(tmp_path, 8)
    checkpoints.prune(keep=1)
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.progress.step == 8


def test_a_kill_at_any_moment_leaves_whole_checkpoints_or_none(tmp_path: Path) -> None:
    """Saves over and over in a process that is killed without warning; all that is there must verify."""
    root = Path(__file__).parents[2]
    last_steps = []
    for number, delay in enumerate((0.05, 0.11, 0.17, 0.23)):
        run_dir = tmp_path / str(number)
        writer = textwrap.dedent(
            f"""
            from pathlib import Path
            from artkv.run_folder.checkpoints import RunCheckpoints
            from tests.run_folder.test_checkpoint import save
            run_dir = Path({str(run_dir)!r})
            for step in range(1, 100_000):
                save(run_dir, step, value=float(step))
                RunCheckpoints(run_dir).prune(keep=2)
                if step == 1:
                    print("ready", flush=True)
            """
        )
        with subprocess.Popen([sys.executable, "-c", writer], cwd=root, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
        checkpoints = RunCheckpoints(run_dir)
        for name in checkpoints.newest_first():
            checkpoint = open_checkpoint(checkpoints.folder / name)
            assert (checkpoint.state().masters["b.weight"] == checkpoint.progress.step).all()
        latest = checkpoints.latest()
        assert latest is not None
        last_steps.append(latest.progress.step)
        named = (run_dir / "checkpoints" / "latest").read_text().strip()
        open_checkpoint(run_dir / "checkpoints" / named).check_resumable()
    assert max(last_steps) > 2
