"""Where a process finds its place, and collectives with and without other ranks."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from artkv.distributed import World, launched_place, process_group, single_process
from artkv.errors import UserError

COMPLETE = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip


def test_a_launchers_place_is_read_and_none_is_one_process() -> None:
    assert launched_place(COMPLETE) == (3, 1, 4)
    assert launched_place({"MASTER_ADDR": "node0"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_PORT": None, "LOCAL_RANK": None}, "LOCAL_RANK, MASTER_PORT is not"),
        ({"RANK": "4"}, "RANK=4, LOCAL_RANK=1 do not fit WORLD_SIZE=4"),
        ({"WORLD_SIZE": "four"}, "must be whole numbers"),
        ({"RANK": None}, "RANK is not"),
    ],
)
def test_a_partial_or_contradictory_environment_names_its_variables(change: dict, message: str) -> None:
    environment = {name: value for name, value in (COMPLETE | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        launched_place(environment)


def test_one_process_needs_no_launcher_and_its_collectives_are_trivial() -> None:
    world = single_process()
    assert world.is_main
    assert world.gather("x") == ["x"]
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert torch.equal(world.all_reduce_sum(torch.ones(2)), torch.ones(2))
    world.barrier()


def _error_of(world: World, failing_ranks: tuple[int, ...]) -> tuple[str, bool]:
    def action() -> str:
        if world.rank in failing_ranks:
            raise UserError("no such file")
        return "done"

    try:
        return world.together(action), False
    except UserError as error:
        return str(error), error.on_all_ranks


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
        }
    torch.save(results, Path(folder) / f"{rank}.pt")


def test_two_ranks_gather_broadcast_and_sum(tmp_path: Path, free_port: int) -> None:
    multiprocessing.spawn(_collect, (free_port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == {
            "gathered": ["from 0", "from 1"],
            "broadcast": "by 0",
            "sum": 3.0,
            "main": rank == 0,
            "together": [("done", False), ("[rank 1] no such file", True), ("no such file", True)],
        }
