"""What decoder blocks in eval mode keep for backward, and what they compute again."""

import weakref
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ActivationBudget:
    """How many bytes all blocks of a stack may keep for backward beside their inputs, at a time.

    A block that finds no room keeps its input alone, and backward computes its inside again. How much a call keeps is
    known from the first one of its shape; that one is let through wherever anything is left.

    limit_bytes: None: no limit; 0: every block recomputes. used_bytes: what is kept now; what belongs to a graph is
    given back when the graph is freed, by backward or unused.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._bytes_of: dict[tuple[int, ...], int] = {}

    def has_room(self, shape: tuple[int, ...]) -> bool:
        """Whether a call with an input of this shape may keep what is inside."""
        if self.limit_bytes is None:
            return True
        needed = self._bytes_of.get(shape, 1)
        return self.used_bytes + needed <= self.limit_bytes

    def keep(self, shape: tuple[int, ...], num_bytes: int, holder: object) -> None:
        """Counts what a call keeps for as long as `holder` lives."""
        self._bytes_of[shape] = num_bytes
        self.used_bytes += num_bytes
        weakref.finalize(holder, self._give_back, num_bytes)

    def _give_back(self, num_bytes: int) -> None:
        self.used_bytes -= num_bytes


class Kept:
    """Saves what a block's forward pass keeps for backward, and counts its bytes; one for each call.

    inputs: of the block; they are kept by whoever made them and do not count, and neither do weights.
    """

    def __init__(self, inputs: Iterable[Any], weights: Iterable[Tensor] = ()) -> None:
        others = [value for value in (*inputs, *weights) if isinstance(value, Tensor)]
        self._uncounted = {_storage(tensor) for tensor in others}
        self._counted: dict[int, int] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all storages that are kept, each once."""
        return sum(self._counted.values())

    def pack(self, tensor: Tensor) -> Any:
        """What autograd keeps in place of a tensor that it saves."""
        storage = _storage(tensor)
        if storage not in self._uncounted:
            self._counted[storage] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, an output would keep its own graph alive

    def unpack(self, packed: Any) -> Tensor:
        """The tensor that backward computes with."""
        assert isinstance(packed, Tensor)
        return packed


def recompute_blocks(blocks: Iterable[nn.Module], budget: ActivationBudget) -> None:
    """Makes each block that finds no room in `budget` keep only its input, and compute its inside again in backward.

    transformers' own switch acts in training mode only, and frozen blocks never are in it. The variant is
    the non-reentrant one: the reentrant one fails under ZeRO with 'gradient computed twice'. Generation
    and any forward without gradients run as before.
    """
    if budget.limit_bytes is None:
        return
    for block in blocks:
        block.forward = _within(budget, block, block.forward)  # type: ignore[method-assign]


def _within(budget: ActivationBudget, block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def within_budget(hidden_states: Tensor, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(hidden_states, *inputs, **options)
        shape = tuple(hidden_states.shape)
        if not budget.has_room(shape):
            return checkpoint(forward, hidden_states, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        kept = Kept([hidden_states, *inputs, *options.values()], block.parameters())
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            output = forward(hidden_states, *inputs, **options)
        budget.keep(shape, kept.num_bytes, kept)
        return output

    return within_budget


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
