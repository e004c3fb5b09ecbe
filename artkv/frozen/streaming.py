"""Runs frozen blocks whose weights live in host memory, through a few device slots.

How a loader uses it, on every rank alike:

    1. Build the model on the meta device and give every tensor outside the blocks (embeddings, final LayerNorm,
       buffers) its value; leave the blocks' parameters on meta.
    2. `host = HostBlocks.build(readers, storage, world)` with, for each block, one reader per
       parameter name inside the block.
    3. `model.eval().requires_grad_(False)`.
    4. `transport = transport_for(host, device, compute_dtype)`, and
       `streamed = stream_blocks(layers, transport, slots, resident_blocks, ...)`.

LoRA adapters may be injected before step 4 or after it: a block's weights are found by module object, which
peft keeps when it wraps a layer, and names are compared without peft's `.base_layer`. peft creates an adapter on
the device of the weight it wraps, which is meta here: make the adapter's parameters anew on the real device
before the first call, which asserts it. The blocks stay in eval mode; do not also wrap them in
`recompute_blocks`, and let nothing replace or move their parameters afterwards.
"""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from artkv.frozen.block_call import BlockBinding, streamed_forward
from artkv.frozen.recompute import ActivationBudget, recompute_blocks
from artkv.frozen.residency import count_resident, device_bytes, spread_evenly
from artkv.frozen.ring import BlockRing
from artkv.frozen.transport import Transport


class StreamedBlocks:
    """A stack of blocks under streaming, and what it has moved so far; made by `stream_blocks`.

    resident: indices of the blocks that stay on the device. budget: what blocks keep for backward.
    ring, layout: the slots, and how a block is packed. num_slots: at most as many as there are streamed blocks.
    device_bytes: device memory of resident blocks, slots and staging buffer.
    """

    def __init__(self, num_blocks: int, resident: Sequence[int], ring: BlockRing, budget: ActivationBudget) -> None:
        self.num_blocks = num_blocks
        self.budget = budget
        self.resident = tuple(resident)
        self.num_slots = len(ring.slots)
        self.ring = ring
        self.layout = ring.transport.host.layout
        self.device_bytes = device_bytes(
            self.layout,
            ring.transport.compute_dtype,
            num_blocks,
            self.num_slots,
            len(resident),
            ring.transport.is_staged,
        )

    @property
    def loads(self) -> dict[int, int]:
        """How often each streamed block was copied to the device, by block index."""
        return dict(zip(self.ring.blocks, self.ring.loads, strict=True))

    @property
    def total_loads(self) -> int:
        """All copies of blocks so far; resident blocks are not counted."""
        return sum(self.ring.loads)

    @property
    def bytes_moved(self) -> int:
        """Bytes copied from host to device so far, as they are stored; resident blocks are not counted."""
        return self.total_loads * self.layout.packed_bytes

    @property
    def live_slots(self) -> int:
        """Slots that hold a block or are being filled; never above `num_slots`."""
        return self.ring.live_slots

    def summary(self) -> str:
        """One line for the log: where the blocks are, and what has been moved."""
        host, device = self.ring.transport.host, self.ring.transport.device
        pinned = ", page-locked" if host.is_pinned else ""
        return (
            f"{self.num_blocks} frozen blocks of {self.layout.packed_bytes / 1e6:.1f} MB ({self.layout.storage}, "
            f"{host.num_bytes / 1e9:.2f} GB of host memory a node{pinned}); {self.num_slots} slots and "
            f"{len(self.resident)} resident blocks take {self.device_bytes / 1e6:.1f} MB on {device}; "
            f"{self.total_loads} loads, {self.bytes_moved / 1e9:.2f} GB moved so far"
        )


def stream_blocks(
    blocks: Sequence[nn.Module],
    transport: Transport,
    slots: int = 2,
    resident_blocks: int | Literal["auto"] = 0,
    memory_budget_bytes: int | None = None,
    kept_activation_bytes: int | None = None,
) -> StreamedBlocks:
    """Makes `blocks` compute with weights in host memory, fetched block by block; the module's top says when.

    A forward pass fetches each streamed block once, and so does its backward pass; several calls of a block in a row
    fetch it once for all of them.

    blocks: all of a stack, in the order in which they are called; equal in their parameters' names and shapes.
        The parameters that are in host memory are on the meta device here.
    transport: where the weights are, how slots are filled with them, and the slots' device and dtype.
    slots: blocks on the device at a time, beside the resident ones. 2 let a copy run beside the computing, more
        even out varying times, 1 is the least memory.
    resident_blocks: how many stay on the device, spread evenly; `auto`: as many as `memory_budget_bytes` holds.
    memory_budget_bytes: limit of device memory for this stack's weights; see `count_resident`.
    kept_activation_bytes: what the blocks may keep for backward beside their inputs; see `ActivationBudget`.

    Raises:
        UserError: if slots, resident blocks or budget do not fit.
        ValueError: if the blocks' parameters are not those in host memory, or a block is in training mode.
    """
    host = transport.host
    if len(blocks) != len(host.packed):
        raise ValueError(f"{len(blocks)} blocks, but the host holds {len(host.packed)}")
    bindings = [BlockBinding(index, block, host.layout) for index, block in enumerate(blocks)]
    num_resident = count_resident(
        resident_blocks, memory_budget_bytes, host.layout, transport.compute_dtype, len(blocks), slots,
        transport.is_staged,
    )  # fmt: skip
    resident = spread_evenly(num_resident, len(blocks))
    for index in resident:
        slot = transport.new_slot()
        transport.submit(slot, index)
        transport.wait(slot)
        bindings[index].bind(slot)  # for good
    budget = ActivationBudget(kept_activation_bytes)
    recompute_blocks((blocks[index] for index in resident), budget)
    streamed = [index for index in range(len(blocks)) if index not in set(resident)]
    ring = BlockRing(transport, streamed, slots)
    for position, index in enumerate(streamed):
        block = blocks[index]
        block.forward = streamed_forward(block, bindings[index], ring, position, budget)  # type: ignore[method-assign]
    return StreamedBlocks(len(blocks), resident, ring, budget)
