"""Who may use a run's folder: the living exclude others, the dead do not."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import artkv.run_folder.run_lock as run_lock_module
from artkv.errors import RunFailed, UserError
from artkv.run_folder.run_lock import LockRecord, RunLock, read_lock
from tests.training_runs import Train

BEAT = 0.1  # seconds


@pytest.fixture
def locks(tmp_path: Path) -> Iterator["Locks"]:
    with ExitStack() as stack:
        yield Locks(tmp_path / "run", stack)


class Locks:
    """Makes locks of one folder that are given back after the test."""

    def __init__(self, run_dir: Path, stack: ExitStack) -> None:
        self.run_dir = run_dir
        self._stack = stack

    def new(
        self, job: str | None = None, restart: int = 0, beat: float = BEAT, predecessor_seconds: float = 600.0
    ) -> RunLock:
        environment = {"SLURM_RESTART_COUNT": str(restart)} | ({} if job is None else {"SLURM_JOB_ID": job})
        lock = RunLock(self.run_dir, environment, beat, predecessor_seconds)
        self._stack.callback(lock.release)
        return lock

    def leave(self, **changes: object) -> LockRecord:
        """A lock as a dead run of another host leaves it."""
        holder = RunLock(self.run_dir, {}, 1e6)
        record = replace(taken(holder, self.run_dir), token="dead", host="n9", machine="n9", **changes)  # type: ignore[arg-type]
        holder.release()
        self.run_dir.mkdir(exist_ok=True)
        self.write(record)
        return record

    def write(self, record: LockRecord) -> None:
        temporary = self.run_dir / "other.tmp"
        temporary.write_text(json.dumps(record.__dict__))
        temporary.replace(self.run_dir / "run.lock")


def taken(lock: RunLock, run_dir: Path) -> LockRecord:
    """Takes the lock of a free folder; what it holds then."""
    assert lock.try_take()
    record = read_lock(run_dir)
    assert record is not None
    return record


def is_held(lock: RunLock) -> bool:
    """Whether no other run has taken the lock since."""
    try:
        lock.check()
    except RunFailed:
        return False
    return True


def seconds_to_take(lock: RunLock) -> float:
    began = time.monotonic()
    while not lock.try_take():
        assert time.monotonic() - began < 20
    return time.monotonic() - began


def test_a_living_run_of_this_host_is_named_at_once_and_a_finished_one_is_gone(locks: Locks) -> None:
    first = locks.new(job="17")
    assert first.try_take()
    with pytest.raises(UserError) as error:
        locks.new().try_take()
    assert f"job 17 (process {os.getpid()} on {socket.gethostname()}), which is alive; wait" in str(error.value)
    first.release()
    assert not (locks.run_dir / "run.lock").exists()
    assert locks.new().try_take()


def test_folders_that_were_made_for_it_go_with_it_while_they_are_empty(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for written, left in (("there/run", []), ("new/other/run", ["new", "new/other", "new/other/run"])):
        for is_used in (False, True):
            run_dir = tmp_path / written
            lock = RunLock(run_dir)
            assert lock.try_take()
            if is_used:
                (run_dir / "status.json").touch()
            lock.release()
            assert run_dir.exists() is is_used
            assert (tmp_path / "there").exists()
            if not is_used:
                assert not any((tmp_path / folder).exists() for folder in left)


def test_a_beating_lock_of_another_host_is_refused(locks: Locks) -> None:
    record = locks.leave()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            nonlocal record
            record = replace(record, beat=record.beat + 1)
            locks.write(record)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="process .* on n9, which is alive"):
            seconds_to_take(locks.new())
    finally:
        ended.set()
        thread.join()


# A clock of the other host that is hours off must not matter.
@pytest.mark.parametrize("clock", [-7200.0, 0.0, 7200.0])
def test_a_silent_lock_of_another_host_is_taken_over_after_the_missed_beats(
    locks: Locks, capsys: pytest.CaptureFixture[str], clock: float
) -> None:
    locks.leave(time=time.time() + clock)
    assert seconds_to_take(locks.new()) >= 6 * BEAT
    told = capsys.readouterr().err
    assert "watching its heartbeat for up to 1 s" in told
    assert "is dead and left" in told


def test_a_requeued_job_waits_less_for_its_predecessor_but_waits(locks: Locks) -> None:
    left = locks.leave(job="17")
    requeued = locks.new(job="17", restart=1)
    assert requeued._patience(left) == pytest.approx(3 * BEAT)
    assert requeued._patience(replace(left, restart=1)) == pytest.approx(6 * BEAT)
    assert requeued._patience(replace(left, job="18")) == pytest.approx(6 * BEAT)
    assert seconds_to_take(requeued) >= 3 * BEAT
    with pytest.raises(UserError, match="job 17"):
        locks.new(job="18", restart=1).try_take()


def test_a_requeued_job_waits_for_its_predecessor_to_end(locks: Locks, capsys: pytest.CaptureFixture[str]) -> None:
    predecessor, requeued = locks.new(job="17"), locks.new(job="17", restart=1)
    assert predecessor.try_take()
    for _ in range(3):
        assert not requeued.try_take()
    told = capsys.readouterr().err
    assert told.count("this job before it was queued again; waiting up to 600 s") == 1
    with pytest.raises(UserError, match="which is alive"):  # a start of the job before that one
        locks.new(job="17").try_take()
    predecessor.release()
    assert requeued.try_take()
    third = locks.new(job="17", restart=2, predecessor_seconds=0.0)
    with pytest.raises(UserError, match="which is alive"):
        third.try_take()


def test_a_link_whose_answer_was_lost_is_the_runs_own(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks again, and is told that the file is there."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    lock = locks.new()
    monkeypatch.setattr(os, "link", link_twice)
    assert lock.try_take()
    with pytest.raises(UserError, match="is in use"):
        locks.new().try_take()


def test_a_lock_that_was_taken_is_seen_before_the_next_heartbeat(locks: Locks) -> None:
    lock = locks.new(beat=1000.0)
    assert lock.try_take()
    lock.check()
    record = read_lock(locks.run_dir)
    assert record is not None
    locks.write(replace(record, token="other", host="n9", machine="n9"))
    with pytest.raises(RunFailed, match="process .* on n9 has taken its folder"):
        lock.check()


def test_a_lock_that_is_gone_after_a_long_stop_was_taken_by_a_run_that_has_ended(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = locks.new(beat=1000.0)
    assert lock.try_take()
    (locks.run_dir / "run.lock").unlink()
    lock.check()
    lock._renew()  # somebody's `rm`, or a look of `_remove`: nobody could have taken it so soon
    assert read_lock(locks.run_dir) is not None
    (locks.run_dir / "run.lock").unlink()
    now = run_lock_module._now()
    monkeypatch.setattr(run_lock_module, "_now", lambda: now + 3001.0)
    lock._renew()
    assert list(locks.run_dir.iterdir()) == []
    with pytest.raises(RunFailed, match="stood still so long that another run has taken its folder"):
        lock.check()


def test_a_heartbeat_that_was_slow_to_be_written_does_not_replace_another_runs_lock(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = locks.new()
    assert lock.try_take()
    record = read_lock(locks.run_dir)
    assert record is not None
    other = replace(record, token="other", host="n9", machine="n9")
    fsync = os.fsync

    def slow(file: int) -> None:
        fsync(file)
        locks.write(other)  # what came while this run's file got to the disk

    monkeypatch.setattr(os, "fsync", slow)
    time.sleep(5 * BEAT)
    assert read_lock(locks.run_dir) == other


def test_a_folder_that_cannot_be_locked_is_named(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    message = f"run.output_dir = {locks.run_dir}: cannot be locked \\(Operation not permitted\\); give a folder"
    with pytest.raises(UserError, match=message):
        locks.new().try_take()


def test_a_lock_that_another_has_taken_meanwhile_is_put_back(locks: Locks) -> None:
    """Two runs see the same dead holder; the slower one must not remove the quicker one's lock."""
    dead = locks.leave()
    quicker = replace(dead, token="quicker")
    locks.write(quicker)
    locks.new()._remove(dead)
    assert read_lock(locks.run_dir) == quicker
    locks.new()._remove(quicker)
    assert read_lock(locks.run_dir) is None
    assert sorted(path.name for path in locks.run_dir.iterdir()) == []


HOLD = (
    "import sys, time; from pathlib import Path; from artkv.run_folder.run_lock import RunLock\n"
    "assert RunLock(Path(sys.argv[1])).try_take(); print('taken', flush=True); time.sleep(60)"
)


def holder_of(run_dir: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    return holder


def test_the_lock_of_a_killed_process_of_this_host_is_taken_at_once(locks: Locks) -> None:
    with holder_of(locks.run_dir) as holder:
        try:
            with pytest.raises(UserError, match=f"process {holder.pid}"):
                locks.new().try_take()
        finally:
            holder.kill()
    assert seconds_to_take(locks.new(beat=1000.0)) < 5  # long before 6 heartbeats


def test_a_process_of_another_user_that_proc_hides_is_judged_by_its_heartbeat(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = locks.new()
    assert holder.try_take()
    monkeypatch.setattr(run_lock_module, "process_start", lambda pid: None)
    monkeypatch.setattr(run_lock_module, "is_anothers", lambda pid: pid == os.getpid())
    other = locks.new()
    with pytest.raises(UserError, match="which is alive"):
        seconds_to_take(other)
    assert is_held(holder)


def test_a_number_that_another_process_uses_now_is_no_living_holder(locks: Locks) -> None:
    record = taken(locks.new(beat=1000.0), locks.run_dir)
    assert record.pid_start is not None
    locks.write(replace(record, token="dead", pid_start=record.pid_start - 1))
    assert seconds_to_take(locks.new(beat=1000.0)) < 5


def test_the_heartbeat_moves_and_a_holder_that_was_replaced_finds_out(locks: Locks) -> None:
    lock = locks.new()
    assert lock.try_take()
    first = read_lock(locks.run_dir)
    time.sleep(5 * BEAT)
    second = read_lock(locks.run_dir)
    assert first is not None
    assert second is not None
    assert second.beat > first.beat
    lock.check()
    other = replace(second, token="other", host="n9", machine="n9")
    locks.write(other)
    time.sleep(3 * BEAT)
    with pytest.raises(RunFailed, match="process .* on n9 has taken its folder"):
        lock.check()
    lock.release()
    assert read_lock(locks.run_dir) == other


def test_of_many_that_find_a_dead_lock_one_takes_it(locks: Locks) -> None:
    for _ in range(10):
        locks.leave()
        runners = [locks.new(beat=0.02) for _ in range(6)]
        takers, refused = [], []
        gate = threading.Barrier(len(runners))

        def run(lock: RunLock, gate: threading.Barrier = gate, takers: list = takers, refused: list = refused) -> None:
            gate.wait()
            try:
                while not lock.try_take():
                    pass
                takers.append(lock)
            except UserError:
                refused.append(lock)

        threads = [threading.Thread(target=run, args=(lock,)) for lock in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.1)
        holding = [lock for lock in takers if is_held(lock)]
        assert len(holding) == 1
        assert len(takers) + len(refused) == 6
        for lock in runners:
            lock.release()


def test_something_else_in_the_locks_place_is_told(locks: Locks) -> None:
    locks.run_dir.mkdir()
    (locks.run_dir / "run.lock").write_text("{}")
    with pytest.raises(UserError, match=r"run.lock: is no lock of this artkv: lacks token, .*; remove it"):
        locks.new().try_take()


def test_a_run_refuses_a_folder_that_another_uses_and_leaves_it_alone(
    run_training: Train, tiny_config: object, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with holder_of(run_dir) as holder:
        try:
            with pytest.raises(UserError, match=f"is in use by process {holder.pid}"):
                run_training()
            assert [path.name for path in run_dir.iterdir()] == ["run.lock"]
        finally:
            holder.kill()
    assert run_training(["training.num_epochs=1"]).step == 9
    assert not (run_dir / "run.lock").exists()
    assert run_lock_module.read_lock(run_dir) is None
