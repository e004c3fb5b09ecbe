"""One block under streaming: where its weights are bound, and how a call of it fetches, keeps and recomputes.

A call with gradients keeps what backward needs, but for the weights: in their stead it notes their places in the slot,
and backward fetches them again. Where the budget for what is kept is used up the call is a non-reentrant checkpoint:
it keeps the block's input alone, and backward fetches the weights and recomputes the inside. So at no time are more
blocks on the device than there are slots.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from artkv.frozen.block_layout import BlockLayout
from artkv.frozen.recompute import ActivationBudget, Kept
from artkv.frozen.ring import BlockRing, Direction
from artkv.frozen.transport import Slot

# Passed by transformers to each decoder layer.
_KV_CACHE = "past_key_values"


class BlockBinding:
    """Where a block's frozen parameters hang: module objects and attribute names, captured once.

    Outside a call the block has its meta parameters, so that a use that bypasses streaming is an error and
    never a computation with another block's weights.
    """

    def __init__(self, index: int, block: nn.Module, layout: BlockLayout) -> None:
        self.index = index
        self._block = block
        self._rest_was_checked = False
        if any(module.training for module in block.modules()):
            raise ValueError(f"block {index} is in training mode; call eval() first")
        found: dict[str, tuple[nn.Module, str, nn.Parameter]] = {}
        for module_name, module in block.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    name = f"{module_name}.{attribute}" if module_name else attribute
                    found[name.replace(".base_layer.", ".")] = (module, attribute, parameter)
        shapes = {name: tuple(parameter.shape) for name, (_, _, parameter) in found.items()}
        expected = {place.name: place.shape for place in layout.places}
        if shapes != expected:
            different = sorted({name for name, _ in shapes.items() ^ expected.items()})
            raise ValueError(
                f"block {index}: its frozen parameters are not those in host memory: {different[:8]}; what trains must "
                "have requires_grad set before the block is streamed"
            )
        if not_meta := [name for name, (_, _, parameter) in found.items() if not parameter.is_meta]:
            raise ValueError(f"block {index}: {not_meta[:8]} have memory of their own; leave them on the meta device")
        self._places = [found[place.name] for place in layout.places]

    def bind(self, slot: Slot) -> None:
        """Puts a slot's parameters into the block."""
        if slot.block != self.index:
            raise RuntimeError(f"block {self.index}: its slot was given to block {slot.block} before it was used")
        for (module, attribute, placeholder), parameter in zip(self._places, slot.parameters, strict=True):
            if module._parameters.get(attribute) is not placeholder:
                raise RuntimeError(
                    f"block {self.index}: {type(module).__name__}.{attribute} was replaced after the block was "
                    "streamed, or the block called itself"
                )
            module._parameters[attribute] = parameter

    @contextmanager
    def bound(self, slot: Slot) -> Iterator[None]:
        """The block has the slot's parameters inside the `with`, and its meta parameters again after it."""
        self.bind(slot)
        try:
            yield
        finally:
            for module, attribute, placeholder in self._places:
                module._parameters[attribute] = placeholder

    def check_ready(self) -> None:
        """Raises if the block cannot be called: in training mode, or an adapter or buffer without a value."""
        if self._block.training:  # dropout would draw another mask when recomputed
            raise RuntimeError(f"block {self.index} is in training mode; call eval() first")
        if self._rest_was_checked:
            return
        # Once, and not at installation: adapters may come after it.
        streamed = {id(parameter) for _, _, parameter in self._places}
        rest = [*self._block.named_parameters(), *self._block.named_buffers()]
        if on_meta := [name for name, tensor in rest if tensor.is_meta and id(tensor) not in streamed]:
            raise RuntimeError(f"block {self.index}: {on_meta[:8]} are on the meta device; give them values")
        self._rest_was_checked = True


def streamed_forward(
    block: nn.Module, binding: BlockBinding, ring: BlockRing, position: int, budget: ActivationBudget
) -> Callable[..., Any]:
    """What replaces `block.forward`; `position` is the block's in the ring, `budget` that of what calls keep."""
    forward = block.forward

    @wraps(forward)
    def streamed(*inputs: Any, **options: Any) -> Any:
        binding.check_ready()
        call = _BlockCall(forward, binding, ring, position)
        marked = call.mark_last_use(block, inputs, options) if torch.is_grad_enabled() else None
        if marked is None:
            return call.run(Direction.CYCLE, inputs, options)
        inputs, options = marked
        if budget.has_room(tuple(inputs[0].shape)):
            return call.run_and_keep(block, budget, inputs, options)
        return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False, **options)

    return streamed


class _BlockCall:
    """One call of a streamed block: its forward pass, and what it does in each backward pass over it."""

    def __init__(self, forward: Callable[..., Any], binding: BlockBinding, ring: BlockRing, position: int) -> None:
        self._forward = forward
        self._binding = binding
        self._ring = ring
        self._position = position
        self._was_run = False
        self._in_backward: tuple[Slot, int] | None = None

    def run(self, direction: Direction, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A forward pass: fetches the block, computes, gives the slot back."""
        slot = self._ring.acquire(self._position, direction)
        try:
            with self._binding.bound(slot):
                return self._forward(*inputs, **options)
        finally:
            self._ring.release(self._position)

    def run_and_keep(
        self, block: nn.Module, budget: ActivationBudget, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """A forward pass that keeps what backward needs, weights left out."""
        slot = self._ring.acquire(self._position, Direction.FORWARD)
        kept = _KeptOfStreamed([*inputs, *options.values()], block.parameters(), slot, self)
        try:
            with self._binding.bound(slot), torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
                output = self._forward(*inputs, **options)
        finally:
            self._ring.release(self._position)
        budget.keep(tuple(inputs[0].shape), kept.num_bytes, kept)
        return output

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What `checkpoint` calls: first in the forward pass, then in backward to recompute."""
        if not self._was_run:
            self._was_run = True
            return self.run(Direction.FORWARD, inputs, options)
        # Released by `end_backward`: what is recomputed here refers to the slot.
        with self._binding.bound(self.slot_in_backward()):
            return self._forward(*inputs, **options)

    def slot_in_backward(self) -> Slot:
        """The slot with the block, fetched when backward asks for it first."""
        if self._in_backward is None:
            slot = self._ring.acquire(self._position, Direction.BACKWARD)
            self._in_backward = (slot, slot.version)
        return self._in_backward[0]

    def mark_last_use(
        self, block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Puts a node in front of the block that backward reaches once it is through with the block's inside.

        Returns the inputs and options to call the block with, or None if it has nothing to differentiate.
        """
        values = [*inputs, *options.values()]
        marked = [n for n, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        anchor = None
        if not marked:
            if not any(parameter.requires_grad for parameter in block.parameters()):
                return None
            # Adapters in a block whose input has no gradient: an anchor makes backward come by all the same. One
            # input only: an attention mask with a gradient would change the attention's kernel.
            anchor = torch.zeros((), requires_grad=True)
            marked = [n for n, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()][:1]
        if options.get(_KV_CACHE) is not None:
            raise ValueError(f"{_KV_CACHE} with gradients: recomputation would append to the cache a second time")
        for n, value in zip(marked, _LastUse.apply(self, anchor, *(values[n] for n in marked)), strict=True):
            values[n] = value
        return tuple(values[: len(inputs)]), dict(zip(options, values[len(inputs) :], strict=True))

    def end_backward(self) -> None:
        """All that backward does with the block is enqueued: checks that the slot held it all the while.

        autograd compares the versions neither of tensors that `checkpoint` recomputed nor of those that come from a
        hook, so this does.
        """
        if self._in_backward is None:
            return  # backward needed no weight of the block
        slot, version = self._in_backward
        self._in_backward = None
        if slot.version != version:
            raise RuntimeError(
                f"block {self._binding.index}: its slot was overwritten while backward computed with it (version "
                f"{slot.version}, expected {version}); backward passes must not run into one another"
            )
        self._ring.release(self._position)


class _InSlot(NamedTuple):
    """A saved view of a weight: where it lies in whatever slot has the block in backward."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _KeptOfStreamed(Kept):
    """What a streamed block keeps: its weights by their places."""

    def __init__(self, inputs: Iterable[Any], adapters: Iterable[Tensor], slot: Slot, call: _BlockCall) -> None:
        super().__init__(inputs, (parameter for parameter in adapters if not parameter.is_meta))
        self._slot_storage = slot.flat.untyped_storage().data_ptr()
        self._call = call

    def pack(self, tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != self._slot_storage:
            return super().pack(tensor)
        return _InSlot(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _InSlot):
            return self._call.slot_in_backward().flat.as_strided(*packed)
        return super().unpack(packed)


class _LastUse(torch.autograd.Function):
    """The identity on a block's inputs; its backward runs after all of the block's own backward."""

    @staticmethod
    def forward(ctx: Any, call: _BlockCall, anchor: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.call.end_backward()
        return (None, None, *gradients)
