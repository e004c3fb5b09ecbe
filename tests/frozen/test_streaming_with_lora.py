"""peft's adapters on streamed layers: they train on the device, the weights that they wrap are streamed."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from artkv.distributed import single_process
from artkv.frozen.host_blocks import HostBlocks
from artkv.frozen.streaming import StreamedBlocks, stream_blocks
from artkv.frozen.transport import CpuTransport
from tests.frozen.streamed_opt import (
    CPU,
    NUM_BLOCKS,
    WIDTH,
    layers_of,
    loss_of,
    on_meta,
    random_inputs,
    readers_of,
    small_opt,
    step,
)


def add_adapters(model: Any) -> dict[str, nn.Parameter]:
    """The same adapters on every model, with both factors non-zero and on the CPU."""
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=r".*\.(q_proj|v_proj|fc1)"), model)
    model.eval()
    generator = torch.Generator().manual_seed(7)
    adapters = {}
    for name, module in model.named_modules():
        if ".lora_" in name and isinstance(module, nn.Linear):
            # On streamed layers peft puts them on meta, beside the weight that they wrap.
            module.weight = nn.Parameter(0.3 * torch.randn(module.weight.shape, generator=generator))
            adapters[name] = module.weight
    return adapters


def streamed_with_lora(resident: Any, adapters_first: bool, **options: Any) -> tuple[Any, dict, StreamedBlocks]:
    twin = on_meta(resident)
    host = HostBlocks.build(readers_of(layers_of(resident)), "fp32", single_process(CPU))
    adapters = add_adapters(twin) if adapters_first else {}
    transport = CpuTransport(host, CPU, torch.float32, poison=True)
    streamed = stream_blocks(layers_of(twin), transport, **options)
    return twin, adapters or add_adapters(twin), streamed


@pytest.mark.parametrize("kept_bytes", [None, 0])
@pytest.mark.parametrize("num_resident", [0, 2])
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("adapters_first", [True, False])
def test_adapters_get_the_resident_models_gradients(
    adapters_first: bool, slots: int, num_resident: int, kept_bytes: int | None
) -> None:
    resident = small_opt()
    options = {"resident_blocks": num_resident, "kept_activation_bytes": kept_bytes}
    model, adapters, streamed = streamed_with_lora(resident, adapters_first, slots=slots, **options)
    expected_adapters = add_adapters(resident)
    for seed in range(2):
        assert all(map(torch.equal, step(model, seed), step(resident, seed)))
    assert len(adapters) == 6 * NUM_BLOCKS
    for name, parameter in adapters.items():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
        assert torch.equal(parameter.grad, expected_adapters[name].grad), name
    assert streamed.live_slots <= slots
    assert streamed.layout.slot_elements < 2 * sum(place.numel for place in streamed.layout.places)


def gradients_without_input_gradient(model: Any, adapters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    embeds, mask, labels = random_inputs(0, 7, model)
    loss_of(model, (embeds.detach(), mask, labels)).backward()
    return {name: parameter.grad for name, parameter in adapters.items() if parameter.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_first_block_whose_input_has_no_gradient(attention: str) -> None:
    resident = small_opt(attention=attention)
    model, adapters, streamed = streamed_with_lora(resident, True, slots=2)
    expected = gradients_without_input_gradient(resident, add_adapters(resident))
    masks: list[Tensor] = []
    model.model.decoder.layers[0].self_attn.register_forward_pre_hook(
        lambda module, inputs, options: masks.append(options["attention_mask"]), with_kwargs=True
    )
    found = gradients_without_input_gradient(model, adapters)
    assert masks  # one with a gradient would take another kernel on a GPU
    assert not any(mask.requires_grad for mask in masks)
    assert found.keys() == expected.keys() == adapters.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert streamed.total_loads == 2 * NUM_BLOCKS - 2


def test_adapters_left_on_meta_are_named() -> None:
    model, _, _ = streamed_with_lora(small_opt(), True)
    model.model.decoder.layers[3].fc1.lora_A["default"].weight = nn.Parameter(torch.empty(2, WIDTH, device="meta"))
    with pytest.raises(RuntimeError, match=r"block 3: \['fc1.lora_A.default.weight'\] are on the meta device"):
        step(model, seed=0)
