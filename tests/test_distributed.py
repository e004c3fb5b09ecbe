"""Where a process finds its place, and collectives with and without other ranks."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import torch.multiprocessing as multiprocessing

from artkv import distributed
from artkv.distributed import (
    World,
    process_group,
    single_process,
)
from artkv.errors import RunFailed, UserError
from tests.test_launcher_variables import SRUN_TASK


def test_one_process_needs_no_launcher_and_its_collectives_are_trivial() -> None:
    world = single_process()
    assert world.is_main
    assert single_process(torch.device("meta")).device == torch.device("meta")
    assert world.gather("x") == ["x"]
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert torch.equal(world.all_reduce_sum(torch.ones(2)), torch.ones(2))
    world.barrier()


# Its processes start with torch imported, which else takes most of their time.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["artkv.distributed"])


def _error_of(world: World, failing_ranks: tuple[int, ...]) -> tuple[str, bool]:
    def action() -> str:
        if world.rank in failing_ranks:
            raise UserError("no such file")
        return "done"

    try:
        return world.together(action), False
    except UserError as error:
        return str(error), error.on_all_ranks


def _failure_of(world: World, action: Callable[[], object]) -> list[str]:
    """The error that `action`, done together on both ranks, ends with."""
    try:
        world.together(action)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def _fail_on_rank_0(world: World, error: Exception) -> None:
    if world.is_main:
        raise error


def _leave_between_meetings(world: World, error: Exception) -> None:
    _fail_on_rank_0(world, error)
    world.gather("not for the rank that has left")


def _fail_differently(world: World) -> None:
    raise UserError("no such file") if world.is_main else OSError("disk full")


def _collect(rank: int, port: int, folder: str) -> None:
    import os

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with process_group(timeout_minutes=1) as world:
        results = {
            "gathered": world.gather(f"from {world.rank}"),
            "broadcast": world.broadcast(f"by {world.rank}"),
            "sum": world.all_reduce_sum(torch.tensor(float(world.rank + 1))).item(),
            "main": world.is_main,
            "together": [_error_of(world, failing) for failing in ((), (1,), (0, 1))],
            "failures": [
                _failure_of(world, lambda: _fail_on_rank_0(world, OSError("disk full"))),
                _failure_of(world, lambda: _fail_on_rank_0(world, RunFailed("lock lost"))),
                _failure_of(world, lambda: world.together(lambda: _fail_on_rank_0(world, OSError("disk full")))),
                _failure_of(world, lambda: _leave_between_meetings(world, OSError("disk full"))),
                _failure_of(world, lambda: _leave_between_meetings(world, UserError("no such file"))),
                _failure_of(world, lambda: world.together(lambda: _fail_on_rank_0(world, UserError("no such file")))),
                _failure_of(world, lambda: _fail_differently(world)),
            ],
            "after": world.gather(world.rank),
        }
    torch.save(results, Path(folder) / f"{rank}.pt")


def test_two_ranks_gather_broadcast_and_sum(tmp_path: Path, free_port: int) -> None:
    multiprocessing.start_processes(_collect, (free_port, str(tmp_path)), nprocs=2, start_method="forkserver")
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == {
            "gathered": ["from 0", "from 1"],
            "broadcast": "by 0",
            "sum": 3.0,
            "main": rank == 0,
            "together": [("done", False), ("[rank 1] no such file", True), ("no such file", True)],
            "failures": [
                ["OSError", "disk full"] if rank == 0 else ["RunFailed", "rank 0 failed: OSError: disk full"],
                ["RunFailed", "lock lost" if rank == 0 else "rank 0 failed: lock lost"],
                ["OSError", "disk full"] if rank == 0 else ["RunFailed", "rank 0 failed: OSError: disk full"],
                ["OSError", "disk full"] if rank == 0 else ["RunFailed", "rank 0 failed: OSError: disk full"],
                ["UserError", "[rank 0] no such file"],
                ["UserError", "[rank 0] no such file"],
                ["RunFailed", "rank 1 failed: OSError: disk full"] if rank == 0 else ["OSError", "disk full"],
            ],
            "after": [0, 1],
        }


def _wait_alone(rank: int, port: int, folder: str) -> None:
    os.environ |= SRUN_TASK | {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        with process_group(timeout_minutes=0.05):
            message = "met"
    except RunFailed as error:
        message = str(error)
    (Path(folder) / f"{rank}.txt").write_text(message)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_never_come_fails_after_the_timeout(tmp_path: Path, free_port: int, rank: int) -> None:
    process = FORKS.Process(target=_wait_alone, args=(rank, free_port, str(tmp_path)))
    process.start()
    process.join(timeout=60)
    assert not process.is_alive()
    message = (tmp_path / f"{rank}.txt").read_text()
    assert f"rank {rank} of 2 on {socket.gethostname()} did not meet the others at 127.0.0.1:{free_port}" in message
    assert "within 0.05 minutes (distributed.timeout_minutes)" in message


def _group_timeout(rank: int, port: int, ended: Path) -> None:
    os.environ |= SRUN_TASK | {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with process_group(timeout_minutes=0.05) as world:
        group = torch.distributed.new_group(range(2))  # as DeepSpeed makes them
        if world.rank == 0:
            began = time.monotonic()
            with pytest.raises(RuntimeError, match="imed out|imeout|closed"):
                torch.distributed.all_reduce(torch.ones(1), group=group)
            assert time.monotonic() - began < 30
            ended.touch()
        else:
            deadline = time.monotonic() + 60
            while not ended.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        os._exit(0)  # the groups are of no more use


def test_groups_that_others_make_have_the_runs_timeout(tmp_path: Path, free_port: int) -> None:
    ended = tmp_path / "ended"
    multiprocessing.start_processes(_group_timeout, (free_port, ended), nprocs=2, start_method="forkserver")
    assert ended.exists()


def _listen(rank: int, port: int, folder: Path) -> None:
    os.environ |= SRUN_TASK | {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with process_group(timeout_minutes=1) as world:
        world.barrier()
        connections = psutil.Process().net_connections("tcp")
        addresses = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
        (folder / f"{rank}.txt").write_text(" ".join(addresses))


def test_ranks_of_one_machine_listen_to_nobody_else(tmp_path: Path, free_port: int) -> None:
    multiprocessing.start_processes(_listen, (free_port, tmp_path), nprocs=2, start_method="forkserver")
    found = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert found == {"127.0.0.1"}  # of the store and of gloo


def test_why_there_is_no_answer_is_told(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    assert distributed._why_silent() == "nobody listens there: was rank 0 started?"
    with socket.create_server(("127.0.0.1", free_port)):
        assert distributed._why_silent().startswith("something listens there")
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    assert distributed._why_silent().startswith("MASTER_ADDR is the name of no host (")


def test_a_port_that_another_run_has_is_told_with_what_to_give(tmp_path: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        process = FORKS.Process(target=_wait_alone, args=(0, free_port, str(tmp_path)))
        process.start()
        process.join(timeout=60)
    message = (tmp_path / "0.txt").read_text()
    assert f"cannot listen at 127.0.0.1:{free_port} (MASTER_ADDR, MASTER_PORT): the port is in use" in message
    assert "--master_port" in message
    assert "reached from every node" not in message


def test_a_meeting_that_fails_for_want_of_shared_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: object, **__: object) -> None:
        raise torch.distributed.DistBackendError(
            "NCCL error in: x.cpp:94, unhandled system error\nncclSystemError: System call\nLast error:\n"
            "Error while creating shared memory segment /dev/shm/nccl-x4Zf1b (size 9637888)"
        )

    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    with pytest.raises(RunFailed, match=r"/dev/shm is too small for NCCL \(Error while .*--shm-size"):
        process_group(timeout_minutes=1).__enter__()


def test_a_port_at_which_another_program_listens_is_not_waited_at_for_ever(tmp_path: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        process = FORKS.Process(target=_wait_alone, args=(1, free_port, str(tmp_path)))
        process.start()
        process.join(timeout=60)
        assert not process.is_alive()
    message = (tmp_path / "1.txt").read_text()
    assert "did not meet the others" in message
    assert "something listens there and gives no answer: is it another program?" in message
