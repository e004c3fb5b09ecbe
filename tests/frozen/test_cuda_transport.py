"""The order of copies and computing on CUDA, proved on a CPU from what is enqueued where.

Streams and events are replaced by recorders. Every fill of a slot, and the first and last use after it, become
operations on a stream; they are ordered by their stream and by events, and by nothing else, as on a device. A
fill that this leaves unordered with another operation on its slot would be a race.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from artkv.frozen.block_layout import Storage
from artkv.frozen.streaming import StreamedBlocks
from artkv.frozen.transport import CudaTransport, Slot
from tests.frozen.streamed_opt import (
    CPU,
    NUM_BLOCKS,
    layers_of,
    loss_of,
    random_inputs,
    small_opt,
    step,
    streamed_twin,
)


class Operation(NamedTuple):
    """before: numbers of the operations that it is ordered after."""

    kind: str
    slot: Slot
    before: frozenset[int]


class RecordedStream:
    """before: what all that is enqueued from now on is ordered after."""

    def __init__(self) -> None:
        self.before: frozenset[int] = frozenset()
        self.ignores_events = False

    def wait_event(self, event: "RecordedEvent") -> None:
        assert event.before is not None, "CUDA does not wait for an event that was never recorded"
        if not self.ignores_events:
            self.before |= event.before


class RecordedEvent:
    def __init__(self) -> None:
        self.before: frozenset[int] | None = None

    def record(self, stream: RecordedStream) -> None:
        self.before = stream.before


class RecordedDevice:
    """Stands in for the parts of `torch.cuda` that the transport calls."""

    def __init__(self) -> None:
        self.computing, self.copying = RecordedStream(), RecordedStream()
        self.current = self.computing
        self.operations: list[Operation] = []
        self.submitted: Slot | None = None

    def enqueue(self, kind: str, slot: Slot) -> None:
        self.operations.append(Operation(kind, slot, self.current.before))
        self.current.before |= {len(self.operations) - 1}

    @contextmanager
    def stream(self, stream: RecordedStream) -> Iterator[None]:
        previous, self.current = self.current, stream
        assert self.submitted is not None
        version = self.submitted.version
        yield
        assert self.submitted.version > version, "nothing was written on the copying stream"
        self.enqueue("fill", self.submitted)
        self.current = previous

    def unordered(self) -> list[tuple[int, int]]:
        """Operations on one slot, one of them a fill, that could run at the same time."""
        numbered = list(enumerate(self.operations))
        return [
            (earlier, later)
            for later, operation in numbered
            for earlier, other in numbered[:later]
            if other.slot is operation.slot
            and "fill" in (other.kind, operation.kind)
            and earlier not in operation.before
        ]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> RecordedDevice:
    recorded = RecordedDevice()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: recorded.copying)
    monkeypatch.setattr(torch.cuda, "Event", RecordedEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: recorded.current)
    monkeypatch.setattr(torch.cuda, "stream", recorded.stream)
    monkeypatch.setattr("artkv.frozen.host_blocks.HostBlocks.pin", lambda host: None)
    return recorded


def run(device: RecordedDevice, slots: int, storage: Storage, releases: bool = True) -> StreamedBlocks:
    """Two training steps and an evaluation, compared with the resident model where the storage is exact."""
    resident = small_opt()
    model, streamed = streamed_twin(resident, transport=recording(device, releases), storage=storage, slots=slots)
    for seed in range(2):
        found, expected = step(model, seed), step(resident, seed)
        assert storage == "int8" or all(map(torch.equal, found, expected))
    with torch.no_grad():
        loss_of(model, random_inputs(0, 5, model))
    return streamed


def recording(device: RecordedDevice, releases: bool = True) -> type[CudaTransport]:
    """The transport, with what it enqueues written down."""

    class Recording(CudaTransport):
        def submit(self, slot: Slot, block: int) -> None:
            device.submitted = slot
            super().submit(slot, block)

        def wait(self, slot: Slot) -> None:
            super().wait(slot)
            device.enqueue("use", slot)

        def release(self, slot: Slot) -> None:
            device.enqueue("use", slot)
            if releases:
                super().release(slot)
            else:
                slot.in_use = False

    return Recording


@pytest.mark.parametrize("storage", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("slots", [1, 2, 3, NUM_BLOCKS])
def test_no_fill_races_with_a_use(device: RecordedDevice, slots: int, storage: Storage) -> None:
    streamed = run(device, slots, storage)
    assert device.unordered() == []
    assert sum(operation.kind == "fill" for operation in device.operations) == streamed.total_loads


@pytest.mark.parametrize(("slots", "overlaps"), [(1, False), (2, True), (3, True)])
def test_copies_run_beside_the_computing(device: RecordedDevice, slots: int, overlaps: bool) -> None:
    """With one slot each block's computing waits for its copy; with two it leaves the next block's copy alone."""
    streamed = run(device, slots, "fp32")
    fills = [number for number, operation in enumerate(device.operations) if operation.kind == "fill"]
    beside = [
        fill
        for fill in fills
        if any(use.kind == "use" and fill not in use.before for use in device.operations[fill + 1 :])
    ]
    # In the end no use follows the last fills.
    assert len(beside) >= streamed.total_loads - slots if overlaps else not beside


@pytest.mark.parametrize("broken", ["copying", "computing"])
def test_a_stream_that_ignores_events_is_a_race(device: RecordedDevice, broken: str) -> None:
    getattr(device, broken).ignores_events = True
    run(device, 2, "fp32")
    assert device.unordered()


def test_a_missing_release_is_a_race(device: RecordedDevice) -> None:
    run(device, 2, "fp32", releases=False)
    assert device.unordered()


def test_a_fill_comes_after_what_an_abandoned_backward_enqueued(device: RecordedDevice) -> None:
    resident = small_opt()
    model, _ = streamed_twin(resident, transport=recording(device), slots=2)
    inputs = random_inputs(0, 6, model)
    inputs[0].register_hook(fail)
    layers_of(model)[2].self_attn.register_full_backward_pre_hook(fail)
    with pytest.raises(ValueError, match="out of memory"):
        loss_of(model, inputs).backward()
    assert any(slot.in_use for slot in {operation.slot for operation in device.operations})
    layers_of(model)[2].self_attn._backward_pre_hooks.clear()
    assert all(map(torch.equal, step(model, 1), step(resident, 1)))
    assert device.unordered() == []


def fail(*_: object) -> None:
    raise ValueError("out of memory, say")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", ["bf16", "int8"])
def test_on_a_real_device(storage: Storage, dtype: torch.dtype, slots: int) -> None:
    """The weights are exact in bf16; int8 is compared with the CPU's decoding of the same bytes."""
    cuda = torch.device("cuda", 0)
    resident = small_opt(dtype, device=cuda)
    if storage == "int8":
        decoded, _ = streamed_twin(small_opt(dtype), storage="int8", resident_blocks=NUM_BLOCKS)
        resident = decoded.to(cuda)
    model, streamed = streamed_twin(small_opt(dtype, device=cuda), storage=storage, slots=slots)
    assert streamed.ring.transport.host.is_pinned
    for seed in range(4):
        assert all(map(torch.equal, step(model, seed), step(resident, seed)))
    assert streamed.total_loads == 2 * NUM_BLOCKS - slots + 3 * 2 * (NUM_BLOCKS - slots)
    assert CPU not in {slot.flat.device for slot in streamed.ring.slots}
