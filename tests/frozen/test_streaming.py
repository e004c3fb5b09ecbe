"""Streamed blocks against the same model with its weights resident: not one bit may differ."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Blip2VisionConfig, Blip2VisionModel

from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.frozen.host_blocks import HostBlocks
from artkv.frozen.residency import device_bytes
from artkv.frozen.streaming import stream_blocks
from artkv.frozen.transport import transport_for
from tests.frozen.streamed_opt import (
    CPU,
    NUM_BLOCKS,
    layers_of,
    loss_of,
    on_meta,
    random_inputs,
    readers_of,
    small_opt,
    step,
    streamed_twin,
)

SLOTS = range(1, NUM_BLOCKS + 2)
# What blocks may keep for backward: all, nothing, or what the first few of them do.
KEPT_BYTES = [None, 0, 9_000]


def assert_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(other).all()
        assert other.abs().sum() > 0
        assert torch.equal(one, other)


def expected_loads(num_streamed: int, slots: int, num_steps: int) -> int:
    """2S - B in the first step, 2S - 2B in each later one; all slots at most S."""
    slots = min(slots, num_streamed)
    return 2 * num_streamed - slots + (num_steps - 1) * (2 * num_streamed - 2 * slots)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept_bytes", KEPT_BYTES)
def test_loss_gradients_and_loads(kept_bytes: int | None, dtype: torch.dtype, attention: str, slots: int) -> None:
    resident = small_opt(dtype, attention)
    model, streamed = streamed_twin(resident, slots=slots, kept_activation_bytes=kept_bytes)
    live: list[int] = []
    for layer in layers_of(model):  # called in forward and in recomputation
        layer.fc2.register_forward_pre_hook(lambda *_: live.append(streamed.live_slots))
    masters = streamed.ring.transport.host.digest()
    for number in range(3):
        assert_equal(step(model, seed=number), step(resident, seed=number))
        assert streamed.total_loads == expected_loads(NUM_BLOCKS, slots, number + 1)
    calls_a_step = {None: NUM_BLOCKS, 0: 2 * NUM_BLOCKS}
    if kept_bytes in calls_a_step:
        assert len(live) == 3 * calls_a_step[kept_bytes]
    else:
        assert 3 * NUM_BLOCKS < len(live) < 3 * 2 * NUM_BLOCKS
    assert max(live) == min(slots, NUM_BLOCKS)
    assert len(streamed.ring.slots) == min(slots, NUM_BLOCKS)
    assert streamed.bytes_moved == streamed.total_loads * streamed.layout.packed_bytes
    assert streamed.ring.transport.host.digest() == masters


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("num_resident", range(NUM_BLOCKS + 1))
@pytest.mark.parametrize("kept_bytes", KEPT_BYTES)
def test_resident_blocks_are_spread_and_not_counted(kept_bytes: int | None, num_resident: int, slots: int) -> None:
    resident = small_opt()
    options = {"resident_blocks": num_resident, "kept_activation_bytes": kept_bytes}
    model, streamed = streamed_twin(resident, slots=slots, **options)
    assert len(set(streamed.resident)) == num_resident
    for number in range(3):
        assert_equal(step(model, seed=number), step(resident, seed=number))
        assert streamed.total_loads == expected_loads(NUM_BLOCKS - num_resident, slots, number + 1)
    assert streamed.loads.keys() == set(range(NUM_BLOCKS)) - set(streamed.resident)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("kept_bytes", KEPT_BYTES)
def test_accumulation_and_live_graphs(kept_bytes: int | None, slots: int) -> None:
    def gradients(model: Any) -> tuple[Tensor, ...]:
        inputs = [random_inputs(seed, length, model) for seed, length in ((0, 7), (1, 4), (2, 9), (3, 5), (4, 6))]
        (loss_of(model, inputs[0]) / 2).backward()
        (loss_of(model, inputs[1]) / 2).backward()
        # Two graphs at once, backward in either order, then in one call, then twice over one graph.
        first, second = loss_of(model, inputs[2]), loss_of(model, inputs[3])
        first.backward(retain_graph=True)
        second.backward()
        with torch.no_grad():
            loss_of(model, inputs[0])
        (first + loss_of(model, inputs[4])).backward(retain_graph=True)
        first.backward()
        return tuple(embeds.grad for embeds, _, _ in inputs if embeds.grad is not None)

    resident = small_opt()
    model, streamed = streamed_twin(resident, slots=slots, kept_activation_bytes=kept_bytes)
    found, expected = gradients(model), gradients(resident)
    assert len(found) == 5
    assert_equal(found, expected)
    assert streamed.live_slots <= slots


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("kept_bytes", KEPT_BYTES)
@pytest.mark.parametrize("num_batches", [2, 5])
def test_micro_batches_that_go_block_by_block_share_its_loads(
    num_batches: int, kept_bytes: int | None, slots: int
) -> None:
    def gradients(layers: list[torch.nn.Module], model: Any) -> list[Tensor]:
        inputs = [random_inputs(seed, 6 + seed, model)[0] for seed in range(num_batches)]
        hidden: list[Tensor] = list(inputs)
        for layer in layers:
            hidden = [layer(h) for h in hidden]
        return list(torch.autograd.grad([h.square().sum() for h in hidden], inputs))

    resident = small_opt()
    model, streamed = streamed_twin(resident, slots=slots, kept_activation_bytes=kept_bytes)
    for number in range(3):
        found, expected = gradients(layers_of(model), model), gradients(layers_of(resident), resident)
        assert_equal(tuple(found), tuple(expected))
        assert streamed.total_loads == expected_loads(NUM_BLOCKS, slots, number + 1)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_evaluation_and_generation(no_gradients: Any, slots: int) -> None:
    resident = small_opt()
    model, streamed = streamed_twin(resident, slots=slots)
    embeds, mask, _ = random_inputs(0, 6, resident)
    left_mask = mask.flip(1)

    def generated(model: Any) -> Tensor:
        with no_gradients():
            return model.generate(
                inputs_embeds=embeds.detach(),
                attention_mask=left_mask,
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
            )

    assert torch.equal(generated(model), generated(resident))
    # While the last block computes the next pass's first ones are fetched: S loads a pass and B - 1 at the end, or all
    # of them once.
    expected = NUM_BLOCKS if slots >= NUM_BLOCKS else 6 * NUM_BLOCKS + slots - 1
    assert streamed.total_loads == expected
    assert_equal(step(model, seed=1), step(resident, seed=1))  # training goes on from here
    with no_gradients():
        assert torch.equal(loss_of(model, random_inputs(2, 5, model)), loss_of(resident, random_inputs(2, 5, model)))
    assert_equal(step(model, seed=3), step(resident, seed=3))


def test_gradients_on_and_nothing_to_differentiate() -> None:
    resident = small_opt()
    model, _ = streamed_twin(resident)
    embeds, mask, labels = random_inputs(0, 6, resident)
    inputs = (embeds.detach(), mask, labels)
    assert torch.equal(loss_of(model, inputs), loss_of(resident, inputs))
    assert not loss_of(model, inputs).requires_grad


def test_a_streamed_vit() -> None:
    config = Blip2VisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28
    )
    torch.manual_seed(0)
    resident: Any = Blip2VisionModel(config).eval().requires_grad_(False)
    model = copy.deepcopy(resident)
    for layer in model.encoder.layers:
        layer.to_empty(device="meta")
    host = HostBlocks.build(readers_of(list(resident.encoder.layers)), "fp32", single_process(CPU))
    streamed = stream_blocks(list(model.encoder.layers), transport_for(host, CPU, torch.float32))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(pixels).last_hidden_state, resident(pixels).last_hidden_state)
    assert streamed.total_loads == 2 * 3 + 1


def test_masters_in_bf16_computing_in_fp32() -> None:
    resident = small_opt()  # its weights are exact in bf16
    model, streamed = streamed_twin(resident, storage="bf16", slots=2)
    assert_equal(step(model, seed=0), step(resident, seed=0))
    assert streamed.layout.packed_bytes == streamed.layout.slot_bytes(torch.bfloat16)


def test_the_plain_cpu_transport_computes_the_same() -> None:
    resident = small_opt()
    model, streamed = streamed_twin(resident, poison=False)
    for seed in range(2):
        assert_equal(step(model, seed), step(resident, seed))
    assert streamed.total_loads == expected_loads(NUM_BLOCKS, 2, 2)


def test_the_inside_of_a_block_is_not_kept() -> None:
    resident = small_opt()
    model, _ = streamed_twin(resident, resident_blocks=2, kept_activation_bytes=0)
    inputs = random_inputs(0, 7, model)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = inputs[0]
        for layer in layers_of(model):
            hidden = layer(hidden)
    assert [tuple(tensor.shape) for tensor in kept] == [tuple(inputs[0].shape)] * NUM_BLOCKS


def test_what_is_kept_is_what_a_resident_block_keeps_without_its_weights() -> None:
    """Bytes a block: those of the storages that autograd saves, but for weights, the block's input and the mask."""
    resident = small_opt()
    embeds, _, _ = random_inputs(0, 7, resident)
    mask = torch.zeros(2, 1, 7, 7)
    block = layers_of(resident)[0]
    uncounted = {t.untyped_storage().data_ptr() for t in (embeds, mask, *block.parameters())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in uncounted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = block(embeds, attention_mask=mask)
    model, streamed = streamed_twin(resident, kept_activation_bytes=10**9)
    streamed_output = layers_of(model)[0](embeds, attention_mask=mask)
    assert torch.equal(output, streamed_output)
    assert streamed.budget.used_bytes == sum(saved.values()) > 0


def test_auto_fills_the_budget() -> None:
    resident = small_opt()
    _, streamed = streamed_twin(resident, resident_blocks=1, slots=2)
    block_bytes = streamed.layout.slot_bytes(torch.float32)
    assert streamed.device_bytes == 3 * block_bytes
    _, cast = streamed_twin(resident, storage="bf16", resident_blocks=1, slots=2)
    assert cast.device_bytes == 3 * block_bytes  # no staging buffer on the CPU; CUDA would add one of bf16
    assert device_bytes(cast.layout, torch.float32, NUM_BLOCKS, 2, 1) == 3.5 * block_bytes
    for budget, expected in ((2, 0), (3.9, 1), (4, 2), (5, NUM_BLOCKS), (9, NUM_BLOCKS)):
        _, streamed = streamed_twin(
            resident, resident_blocks="auto", slots=2, memory_budget_bytes=int(budget * block_bytes)
        )
        assert len(streamed.resident) == expected
        assert streamed.device_bytes <= budget * block_bytes
    with pytest.raises(UserError, match=r"frozen\.memory_budget: .* do not hold 2 slots"):
        streamed_twin(resident, resident_blocks="auto", slots=2, memory_budget_bytes=2 * block_bytes - 1)
    with pytest.raises(UserError, match=r"needs frozen\.memory_budget"):
        streamed_twin(resident, resident_blocks="auto")
    with pytest.raises(UserError, match=r"frozen\.resident_blocks = 6"):
        streamed_twin(resident, resident_blocks=NUM_BLOCKS + 1)
    with pytest.raises(UserError, match=r"frozen\.slots = 0"):
        streamed_twin(resident, slots=0)


def test_summary_names_the_numbers() -> None:
    model, streamed = streamed_twin(small_opt(), resident_blocks=1)
    step(model, seed=0)
    text = streamed.summary()
    for part in ("5 frozen blocks", "fp32", "2 slots", "1 resident", "6 loads"):
        assert part in text


def test_blocks_are_restored_after_each_call() -> None:
    model, _ = streamed_twin(small_opt())
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    step(model, seed=0)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.is_meta for layer in layers_of(model) for parameter in layer.parameters())


def test_misuse_is_refused() -> None:
    resident = small_opt()
    host = HostBlocks.build(readers_of(layers_of(resident)), "fp32", single_process(CPU))

    def stream(layers: list[torch.nn.Module]) -> None:
        stream_blocks(layers, transport_for(host, CPU, torch.float32))

    with pytest.raises(ValueError, match="4 blocks, but the host holds 5"):
        stream(layers_of(on_meta(resident))[:4])
    with pytest.raises(ValueError, match="block 0: .*memory of their own"):
        stream(layers_of(resident))
    with pytest.raises(ValueError, match="block 0 is in training mode"):
        stream(layers_of(on_meta(resident).train()))
    twin = on_meta(resident)
    twin.model.decoder.layers[0].fc1.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"block 0: .*fc1\.weight.*requires_grad"):
        stream(layers_of(twin))

    model, _ = streamed_twin(resident)
    inputs = random_inputs(0, 6, model)
    with pytest.raises(ValueError, match="past_key_values with gradients"):
        model(inputs_embeds=inputs[0], use_cache=True)
    model.model.decoder.layers[1].train()
    with pytest.raises(RuntimeError, match="block 1 is in training mode"):
        loss_of(model, inputs)
    model.eval()
    model.model.decoder.layers[2].fc1.weight = torch.nn.Parameter(torch.zeros(32, 16), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"block 2: Linear\.weight was replaced"):
        loss_of(model, inputs)
