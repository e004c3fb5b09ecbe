"""Activation checkpointing changes memory, not numbers."""

import torch
from torch import nn

from artkv.frozen.recompute import recompute_blocks


def test_gradients_stay_and_activations_inside_blocks_go() -> None:
    def run(recompute: bool) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(3))
        blocks.eval().requires_grad_(False)
        if recompute:
            recompute_blocks(blocks)
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
    recompute_blocks([block])
    with torch.no_grad():
        assert not block(torch.ones(1, 2)).requires_grad
