"""A run's checkpoints: which is the latest and the best, which are kept, and that a kill leaves whole ones alone."""

import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

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
    assert list(checkpoints.set_aside_newer(5)) == ["step_00000015", "step_00000010"]
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


def test_what_the_user_has_put_beside_them_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step_00000001", folder / "step_00000001_keep")
    shutil.copytree(folder / "step_00000001", folder / "stale_step_00000004")
    shutil.copytree(folder / "step_00000001", folder / ".hidden")
    (folder / "step_00000009").write_text("a file")
    (folder / "step_notes.txt").write_text("notes")
    (folder / ".step_x.tmp").mkdir()
    (folder / "step_00000000").symlink_to("step_00000001_keep")  # a checkpoint that lies elsewhere
    shutil.copytree(folder / "step_00000001", tmp_path / "best")  # cp -L
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.mark_best(1)
    assert "best is not the link that a run makes there, and stays as it is; the best checkpoint is step_00000001" in (
        capsys.readouterr().err
    )
    assert checkpoints.set_aside_newer(3) == {"step_00000004": "stale_step_00000004.2"}
    checkpoints.prune(keep=1, best_step=1)
    assert checkpoints.newest_first() == ["step_00000003", "step_00000001", "step_00000000"]
    left = {path for path in before if path.exists()}
    assert {path.parent.name for path in before.keys() - left} == {"step_00000002", "step_00000004"}
    assert all(path.read_bytes() == before[path] for path in left if path.name != "latest")
    assert (folder / "step_00000000").is_symlink()
    assert (folder / ".step_x.tmp").is_dir()


def test_what_is_set_aside_twice_is_there_twice(tmp_path: Path) -> None:
    for _ in range(3):
        for step in (5, 10):
            save(tmp_path, step) if step == 10 or not RunCheckpoints(tmp_path).has(5) else None
        RunCheckpoints(tmp_path).set_aside_newer(5)
    names = {path.name for path in (tmp_path / "checkpoints").glob("stale*")}
    assert names == {"stale_step_00000010", "stale_step_00000010.2", "stale_step_00000010.3"}


def test_one_that_cannot_be_read_is_as_good_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5), save(tmp_path, 10)
    refused = tmp_path / "checkpoints" / "step_00000010" / "optimizer.safetensors"
    open_path = Path.open

    def opened(path: Path, *arguments: Any, **more: Any) -> Any:
        if path == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", opened)
    latest = RunCheckpoints(tmp_path).latest()
    assert latest is not None
    assert latest.progress.step == 5
    assert (
        "optimizer.safetensors cannot be read (Permission denied); give this user permission" in capsys.readouterr().err
    )


def test_one_of_a_newer_artkv_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr("artkv.run_folder.checkpoint.FORMAT_VERSION", 2)
        save(tmp_path, 10)
    with pytest.raises(UserError, match="has checkpoint format 2, this artkv reads 1; use the version of artkv that"):
        RunCheckpoints(tmp_path).latest()


def test_a_copy_with_a_later_ones_name_is_not_the_latest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 5)
    shutil.copytree(path, path.with_name("step_00000099"))
    latest = RunCheckpoints(tmp_path).latest()
    assert latest is not None
    assert latest.path.name == "step_00000005"
    assert "step_00000099: holds the checkpoint of step 5; give it that one's name" in capsys.readouterr().err
