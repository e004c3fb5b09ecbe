"""What a start that was refused leaves in its folder."""

from contextlib import suppress
from pathlib import Path

from artkv.distributed import single_process
from artkv.errors import RunFailed, UserError
from artkv.run_folder.state_record import recorded_state


def start(run_dir: Path, error: Exception) -> None:
    """One that ends with `error`, after another rank has made its log."""
    run_dir.mkdir(exist_ok=True)
    with suppress(type(error)), recorded_state(run_dir, single_process()):
        (run_dir / "logs").mkdir(exist_ok=True)
        (run_dir / "logs" / "rank_00001.log").write_text("artkv: is wrong\n")
        raise error


def left(run_dir: Path) -> list[str]:
    return sorted(path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*"))


def test_a_first_start_that_was_refused_leaves_nothing(tmp_path: Path) -> None:
    start(tmp_path / "run", UserError("is wrong"))
    assert left(tmp_path / "run") == []


def test_what_others_put_beside_the_ranks_logs_stays(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "job-7.out").touch()
    start(tmp_path / "run", UserError("is wrong"))
    assert left(tmp_path / "run") == ["logs", "logs/job-7.out", "status.json"]


def test_the_logs_of_a_start_that_failed_or_is_not_the_first_stay(tmp_path: Path) -> None:
    start(tmp_path / "run", RunFailed("diverged"))
    assert left(tmp_path / "run") == ["logs", "logs/rank_00001.log", "status.json"]
    start(tmp_path / "run", UserError("is wrong"))
    assert left(tmp_path / "run") == ["logs", "logs/rank_00001.log", "status.json"]
