"""Negative controls: what would make gradients wrong in silence is broken on purpose, and must be noticed."""

from typing import Any

import pytest
import torch
from torch import nn

from artkv.frozen.block_layout import block_layout
from artkv.frozen.ring import BlockRing, Direction
from artkv.frozen.streaming import StreamedBlocks
from artkv.frozen.transport import CpuTransport, Slot
from tests.frozen.streamed_opt import layers_of, loss_of, random_inputs, small_opt, step, streamed_twin


class Poisoning(CpuTransport):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, poison=True)


class Eager(CpuTransport):
    """Fills a slot as soon as it is submitted, as a copy on CUDA may."""

    def submit(self, slot: Slot, block: int) -> None:
        super().submit(slot, block)
        self.wait(slot)
        slot.in_use = False


class NeverWaits(Poisoning):
    def wait(self, slot: Slot) -> None:
        pass


def test_a_skipped_wait_shows_in_the_loss() -> None:
    model, _ = streamed_twin(small_opt(), transport=NeverWaits)
    assert loss_of(model, random_inputs(0, 6, model)).isnan()


def evict_while_recomputing(model: Any, streamed: StreamedBlocks) -> None:
    """Each block, when it is recomputed, gives its only slot to the block before it while gradients still need it."""

    def hook_for(position: int) -> Any:
        def evict(*_: Any) -> None:
            is_recomputation = torch._C._current_graph_task_id() != -1
            if is_recomputation and position > 0:
                streamed.ring._fetch([position - 1])

        return evict

    for position, layer in enumerate(layers_of(model)):
        layer.fc2.register_forward_pre_hook(hook_for(position))


@pytest.mark.parametrize("transport", [Poisoning, Eager])
def test_an_early_eviction_is_an_error(transport: type[CpuTransport]) -> None:
    model, streamed = streamed_twin(small_opt(), transport=transport, slots=1, kept_activation_bytes=0)
    evict_while_recomputing(model, streamed)
    with pytest.raises(RuntimeError, match="block 4: its slot was overwritten while backward computed with it"):
        step(model, seed=0)


@pytest.mark.parametrize("transport", [Poisoning, Eager])
def test_an_early_eviction_is_an_error_where_nothing_is_recomputed_too(transport: type[CpuTransport]) -> None:
    model, streamed = streamed_twin(small_opt(), transport=transport, slots=1)
    inputs = random_inputs(0, 6, model)
    hidden = layers_of(model)[1](layers_of(model)[0](inputs[0]))

    def evict(gradient: torch.Tensor) -> None:  # backward is through with feed-forward, and attention is still to come
        streamed.ring._fetch([0])

    def hook(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        output.register_hook(evict)

    handle = layers_of(model)[2].self_attn.out_proj.register_forward_hook(hook)
    hidden = layers_of(model)[2](hidden)
    handle.remove()
    with pytest.raises(RuntimeError, match="block 2: its slot was overwritten while backward computed with it"):
        hidden.sum().backward()


def test_without_versions_the_early_eviction_would_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = small_opt()
    model, streamed = streamed_twin(resident, transport=Eager, slots=1, kept_activation_bytes=0)
    evict_while_recomputing(model, streamed)
    monkeypatch.setattr(Slot, "version", 0)
    loss, gradient = step(model, seed=0)
    expected_loss, expected_gradient = step(resident, seed=0)
    assert torch.equal(loss, expected_loss)
    assert not torch.allclose(gradient, expected_gradient, rtol=0.1)


class EvictsOnAcquire(BlockRing):
    def acquire(self, position: int, direction: Direction) -> Slot:
        slot = super().acquire(position, direction)
        self._fetch([(position + 1) % len(self.blocks)])
        return slot


def test_a_slot_with_another_block_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artkv.frozen.streaming.BlockRing", EvictsOnAcquire)
    model, _ = streamed_twin(small_opt(), slots=1)
    with pytest.raises(RuntimeError, match="block 0: its slot was given to block 1 before it was used"):
        loss_of(model, random_inputs(0, 6, model))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_autograd_itself_refuses_a_refilled_slot(mode: Any) -> None:
    """Even a block that is not checkpointed cannot get another block's weights in backward."""
    flat = torch.ones(block_layout({"weight": (4, 4)}, "fp32").slot_elements)
    linear = nn.Linear(4, 4, bias=False)
    linear.weight = block_layout({"weight": (4, 4)}, "fp32").slot_parameters(flat)[0]
    output = linear(torch.ones(1, 4, requires_grad=True))
    before = flat._version
    with mode():
        flat.copy_(torch.zeros_like(flat))
    assert flat._version > before
    assert linear.weight._version == flat._version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_training_goes_on_after_a_backward_that_was_abandoned(kept_bytes: int | None) -> None:
    resident = small_opt()
    model, streamed = streamed_twin(resident, slots=2, kept_activation_bytes=kept_bytes)

    def fail(_: torch.Tensor) -> None:
        raise ValueError("out of memory, say")

    inputs = random_inputs(0, 6, model)
    hidden = inputs[0]
    for number, layer in enumerate(layers_of(model)):
        hidden = layer(hidden)
        if number == 2:
            hidden.register_hook(fail)
    with pytest.raises(ValueError, match="out of memory"):
        hidden.sum().backward()
    for seed in range(2):
        assert all(map(torch.equal, step(model, seed), step(resident, seed)))
    assert streamed.live_slots == 2


class FailsOnce:
    """A transport of nothing, whose third copy cannot be begun; `held` is what each slot got."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.slots: list[object] = []
        self.copies = 0

    def new_slot(self) -> Any:
        self.slots.append(object())
        return self.slots[-1]

    def submit(self, slot: Any, block: int) -> None:
        self.copies += 1
        if self.copies == 3:
            raise MemoryError("no room for an event")
        self.held[id(slot)] = block

    def wait(self, slot: Any) -> None: ...
    def release(self, slot: Any) -> None: ...


def test_a_slot_whose_copy_could_not_begin_is_no_blocks() -> None:
    transport: Any = FailsOnce()
    ring = BlockRing(transport, range(6), 2)
    assert transport.held[id(ring.acquire(0, Direction.CYCLE))] == 0
    ring.release(0)
    with pytest.raises(MemoryError):
        ring.acquire(1, Direction.CYCLE)
    for position in (1, 2, 3, 2, 1, 0):
        assert transport.held[id(ring.acquire(position, Direction.CYCLE))] == position
        ring.release(position)
