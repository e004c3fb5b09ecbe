"""Activation checkpointing changes memory, not numbers."""

import torch
from torch import nn

from artkv.frozen.recompute import ActivationBudget, recompute_blocks


def test_gradients_stay_and_activations_inside_blocks_go() -> None:
    def run(recompute: bool) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(3))
        blocks.eval().requires_grad_(False)
        if recompute:
            recompute_blocks(blocks, ActivationBudget(0))
        x = torch.ones(2, 8, requires_grad=True)
        kept: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = x
            for block in blocks:
                hidden = block(hidden)
        hidden.sum().backward()
        assert x.grad is not None
        return x.grad, sum(kept)

    (plain, plain_kept), (recomputed, recomputed_kept) = run(False), run(True)
    assert torch.equal(plain, recomputed)
    assert recomputed_kept < plain_kept / 2


def test_without_gradients_nothing_is_wrapped() -> None:
    block = nn.Linear(2, 2)
    recompute_blocks([block], ActivationBudget(0))
    with torch.no_grad():
        assert not block(torch.ones(1, 2)).requires_grad


def small_block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval().requires_grad_(False)


def test_blocks_keep_what_the_budget_holds() -> None:
    """A call keeps GELU's input alone, 2 x 32 floats: of five blocks two fit into 600 bytes."""
    torch.manual_seed(0)
    blocks = [small_block() for _ in range(5)]
    x = torch.ones(2, 8, requires_grad=True)

    def gradient() -> torch.Tensor:
        hidden = x
        for block in blocks:
            hidden = block(hidden)
        return torch.autograd.grad(hidden.sum(), x)[0]

    expected = gradient()
    budget = ActivationBudget(600)
    recompute_blocks(blocks, budget)
    calls: list[int] = []
    for number, block in enumerate(blocks):
        block[1].register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    for _ in range(3):
        calls.clear()
        hidden = x
        for block in blocks:
            hidden = block(hidden)
        assert budget.used_bytes == 2 * 2 * 32 * 4
        assert torch.equal(torch.autograd.grad(hidden.sum(), x)[0], expected)
        assert calls == [0, 1, 2, 3, 4, 4, 3, 2]  # the last three again in backward
        del hidden
        assert budget.used_bytes == 0
    calls.clear()
    with torch.no_grad():
        blocks[0](x)
    assert budget.used_bytes == 0


def test_a_graph_that_is_dropped_gives_its_room_back() -> None:
    budget = ActivationBudget(10**6)
    block = small_block()
    recompute_blocks([block], budget)
    output = block(torch.ones(2, 8, requires_grad=True))
    assert budget.used_bytes > 0
    del output
    assert budget.used_bytes == 0
