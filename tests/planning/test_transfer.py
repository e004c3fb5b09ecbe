from typing import Any

import pytest
import torch

from artkv.frozen.ring import BlockRing, Direction
from artkv.frozen.transport import Slot
from artkv.planning.gpus import Gpu, find_gpu
from artkv.planning.transfer import (
    Stack,
    forward_pass_seconds,
    hidden_from_tokens,
    loads_per_training_pass,
    training_pass_seconds,
)

OPT = Stack(num_blocks=32, block_elements=78_676_480, block_bytes=157_352_960)
# 1e12 FLOP/s effective, about 1e9 bytes/s: so that times can be told by hand.
SLOW = Gpu("slow", 0, 2e12, 3, 1, True, "")


class _NoTransport:
    """Slots without memory."""

    def new_slot(self) -> Slot:
        return Slot(torch.empty(0), [])

    def submit(self, slot: Slot, block: int) -> None: ...

    def wait(self, slot: Slot) -> None: ...

    def release(self, slot: Slot) -> None: ...


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 32])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_loads_are_those_of_the_real_ring(num_blocks: int, slots: int) -> None:
    transport: Any = _NoTransport()
    ring = BlockRing(transport, range(num_blocks), slots)
    loads = []
    for _ in range(3):
        before = sum(ring.loads)
        for direction, positions in (
            (Direction.FORWARD, range(num_blocks)),
            (Direction.BACKWARD, reversed(range(num_blocks))),
        ):
            for position in positions:
                ring.acquire(position, direction)
                ring.release(position)
        loads.append(sum(ring.loads) - before)
    assert loads[1:] == [loads_per_training_pass(num_blocks, slots)] * 2
    assert loads[0] == loads[1] + min(slots, num_blocks)


@pytest.mark.parametrize(
    ("gpu", "tokens"), [("RTX 3060 12GB", 500), ("RTX 4060 8GB", 1260), ("RTX 4090", 3300), ("A100 80GB", 6200)]
)
def test_copies_are_hidden_from_the_known_numbers_of_tokens(gpu: str, tokens: int) -> None:
    # 5%: the known numbers are rounded, from 25 and 12 GB/s; here the link's exact rate times 0.8.
    assert hidden_from_tokens(OPT, find_gpu(gpu)) == pytest.approx(tokens, rel=0.05)


def test_half_the_bytes_are_hidden_from_half_the_tokens() -> None:
    half = Stack(32, OPT.block_elements, OPT.block_bytes // 2)
    gpu = find_gpu("A10")
    assert hidden_from_tokens(half, gpu) == pytest.approx(hidden_from_tokens(OPT, gpu) / 2, abs=1)


def test_a_pass_takes_the_longer_of_copies_and_products() -> None:
    assert SLOW.effective_flops == 1e12
    copy_rate = SLOW.copy_bytes_per_second
    stack = Stack(num_blocks=10, block_elements=10**9, block_bytes=int(copy_rate))  # a second a load
    # 2 FLOP x 1e9 x 10 blocks x 50 tokens / 1e12 = 1 s forward, 1 s backward, 1 s recomputed.
    assert training_pass_seconds(stack, SLOW, 50, recomputed_blocks=0) == pytest.approx(2)
    assert training_pass_seconds(stack, SLOW, 50, recomputed_blocks=10) == pytest.approx(3)
    assert training_pass_seconds(stack, SLOW, 50, recomputed_blocks=4) == pytest.approx(2.4)
    assert training_pass_seconds(stack, SLOW, 50, recomputed_blocks=10, slowdown=1.5) == pytest.approx(4.5)
    # 8 loads each way take longer than the products; with one slot 9 each way come on top of them.
    assert training_pass_seconds(stack, SLOW, 50, 10, num_streamed=10, slots=2) == pytest.approx(16, rel=1e-6)
    assert training_pass_seconds(stack, SLOW, 50, 10, num_streamed=10, slots=1) == pytest.approx(21, rel=1e-6)
    # From 10 times the tokens on, forward hides 8 loads in 10 s and backward in 20 s.
    assert training_pass_seconds(stack, SLOW, 500, 10, num_streamed=10, slots=2) == pytest.approx(30)
    assert forward_pass_seconds(stack, SLOW, 50) == pytest.approx(1)
    assert forward_pass_seconds(stack, SLOW, 50, num_streamed=10, slots=2) == pytest.approx(10, rel=1e-6)
