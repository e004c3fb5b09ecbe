"""Fills device slots from the masters in host memory; one way for CUDA, one for the CPU."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from artkv.frozen.host_blocks import HostBlocks


@dataclass(eq=False)
class Slot:
    """A flat device buffer that holds one block at a time.

    flat: shape (layout.slot_elements,), compute dtype.
    parameters: frozen parameters over `flat`, in the order of the layout's places.
    block: which block is in it, or on its way.
    in_use: waited for, and not released since.
    """

    flat: Tensor
    parameters: list[nn.Parameter]
    block: int | None = None
    in_use: bool = False

    @property
    def version(self) -> int:
        """Counts the writes to the buffer; all parameters over it share the count."""
        return self.flat._version


class Transport(ABC):
    """Moves blocks from host memory into slots, never back.

    The order of calls for a slot is: `submit`, `wait`, computing with it, `release`, `submit` of another block.

    is_staged: whether a block that is not stored in the compute dtype takes a staging buffer on the device.
    """

    is_staged: ClassVar[bool]

    def __init__(self, host: HostBlocks, device: torch.device, compute_dtype: torch.dtype) -> None:
        self.host = host
        self.device = device
        self.compute_dtype = compute_dtype

    def new_slot(self) -> Slot:
        """An empty slot."""
        flat = torch.zeros(self.host.layout.slot_elements, dtype=self.compute_dtype, device=self.device)
        return Slot(flat, self.host.layout.slot_parameters(flat))

    @abstractmethod
    def submit(self, slot: Slot, block: int) -> None:
        """Starts to fill `slot` with `block`, after everything that was enqueued with it before."""

    @abstractmethod
    def wait(self, slot: Slot) -> None:
        """Makes whatever is enqueued from now on see the slot filled."""

    @abstractmethod
    def release(self, slot: Slot) -> None:
        """Says that the last use of what is in the slot has been enqueued."""


class CpuTransport(Transport):
    """Fills a slot at `wait`, since there is nothing that could run beside the computing.

    poison: fills the slot with NaN at `submit`, so that a missing `wait` and a slot refilled too early show
        in the loss. For tests.
    """

    is_staged = False

    def __init__(
        self, host: HostBlocks, device: torch.device, compute_dtype: torch.dtype, poison: bool = False
    ) -> None:
        super().__init__(host, device, compute_dtype)
        self._poison = poison
        self._filled: dict[Slot, int] = {}

    def submit(self, slot: Slot, block: int) -> None:
        slot.block = block
        slot.in_use = False
        self._filled.pop(slot, None)
        if self._poison:
            with torch.no_grad():
                slot.flat.fill_(torch.nan)

    def wait(self, slot: Slot) -> None:
        slot.in_use = True
        assert slot.block is not None, "waited for a slot that nothing was submitted to"
        if self._filled.get(slot) != slot.block:
            self.host.layout.decode(self.host.packed[slot.block], slot.flat)
            self._filled[slot] = slot.block

    def release(self, slot: Slot) -> None:
        slot.in_use = False


class CudaTransport(Transport):
    """Fills slots on a stream of its own, beside the computing, ordered by events.

    A packed block of the compute dtype is copied straight into the slot. Any other goes through one staging
    buffer on the device and is cast or dequantised there, on the same stream. Every submit is one
    host-to-device copy of one contiguous block.
    """

    is_staged = True

    def __init__(self, host: HostBlocks, device: torch.device, compute_dtype: torch.dtype) -> None:
        super().__init__(host, device, compute_dtype)
        host.pin()
        self._stream: Any = torch.cuda.Stream(device)
        self._events: dict[Slot, _SlotEvents] = {}
        staging_bytes = host.layout.staging_bytes(compute_dtype)
        self._staging = torch.empty(staging_bytes, dtype=torch.uint8, device=device) if staging_bytes else None

    def new_slot(self) -> Slot:
        slot = super().new_slot()
        events = self._events[slot] = _SlotEvents(torch.cuda.Event(), torch.cuda.Event())
        # The allocator may hand out memory that enqueued kernels still read, and zeroing it is enqueued too.
        events.released.record(torch.cuda.current_stream(self.device))
        return slot

    def submit(self, slot: Slot, block: int) -> None:
        events = self._events[slot]
        if slot.in_use:  # a backward that was abandoned: all that it enqueued comes before this point
            self.release(slot)
        slot.block = block
        packed = self.host.packed[block]
        self._stream.wait_event(events.released)
        with torch.cuda.stream(self._stream), torch.no_grad():
            if self._staging is None:
                slot.flat.copy_(self.host.layout.as_slot(packed), non_blocking=True)
            else:
                self._staging.copy_(packed, non_blocking=True)
                self.host.layout.decode(self._staging, slot.flat)
        events.filled.record(self._stream)

    def wait(self, slot: Slot) -> None:
        slot.in_use = True
        torch.cuda.current_stream(self.device).wait_event(self._events[slot].filled)

    def release(self, slot: Slot) -> None:
        slot.in_use = False
        self._events[slot].released.record(torch.cuda.current_stream(self.device))


@dataclass(frozen=True)
class _SlotEvents:
    """filled: recorded on the copying stream after a fill; released: on the computing one after the last use."""

    filled: Any
    released: Any


def transport_for(host: HostBlocks, device: torch.device, compute_dtype: torch.dtype) -> Transport:
    """The transport for `device`."""
    if device.type == "cuda":
        return CudaTransport(host, device, compute_dtype)
    return CpuTransport(host, device, compute_dtype)
