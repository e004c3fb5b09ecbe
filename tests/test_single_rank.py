"""The group of one rank, against gloo's with one rank."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from artkv.single_rank import SINGLE_RANK, _create


@pytest.fixture(params=[SINGLE_RANK, "gloo"])
def group(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A group of one rank on this backend, beside the tests' own."""
    made = not dist.is_initialized()
    if made:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group([0], backend=request.param)
    if made:
        dist.destroy_process_group()


def test_every_collective_gives_what_gloo_gives(group: Any) -> None:
    values = torch.arange(4.0)
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        reduced = values.clone()
        dist.all_reduce(reduced, op=operation, group=group)
        assert torch.equal(reduced, values)
    dist.broadcast(reduced, src=0, group=group)
    dist.reduce(reduced, dst=0, group=group)
    assert torch.equal(reduced, values)
    work = dist.all_reduce(reduced, group=group, async_op=True)
    assert work is not None
    work.wait()
    gathered = [torch.zeros(4)]
    dist.all_gather(gathered, values, group=group)
    assert torch.equal(gathered[0], values)
    gathered = [torch.zeros(4)]
    dist.gather(values, gathered, dst=0, group=group)
    assert torch.equal(gathered[0], values)
    whole = torch.zeros(4)
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(whole, values, group=group)
    assert torch.equal(whole, values)
    for scatter in ("reduce_scatter_single", "all_to_all_single"):
        part = torch.zeros(4)
        getattr(dist, scatter, dist.reduce_scatter_tensor)(part, values, group=group)
        assert torch.equal(part, values), scatter
    parts = [torch.zeros(4), torch.zeros(4)]
    dist.reduce_scatter(parts[0], [values], group=group)
    dist.scatter(parts[1], [values], src=0, group=group)
    assert torch.equal(torch.stack(parts), torch.stack([values, values]))
    swapped = [torch.zeros(4)]
    dist.all_to_all(swapped, [values], group=group)
    assert torch.equal(swapped[0], values)
    objects: list[Any] = [None]
    dist.all_gather_object(objects, {"a": 1}, group=group)
    assert objects == [{"a": 1}]
    dist.broadcast_object_list(objects, src=0, group=group)
    assert objects == [{"a": 1}]
    dist.barrier(group=group)


def test_it_is_for_one_rank() -> None:
    with pytest.raises(ValueError, match="a group of 2 ranks"):
        _create(dist.HashStore(), 0, 2, timedelta(seconds=1))
