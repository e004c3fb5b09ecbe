"""Packing into host memory and decoding into a slot."""

import numpy as np
import pytest
import torch
from torch import Tensor

from artkv.frozen.block_layout import BlockLayout, Storage, block_layout
from tests.frozen.streamed_opt import loss_of, random_inputs, small_opt, streamed_twin

SHAPES = {"fc.weight": (6, 10), "fc.bias": (6,), "norm.weight": (10,), "conv.weight": (3, 2, 4, 4)}


def values(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def decoded(layout: BlockLayout, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    packed = torch.zeros(layout.packed_bytes, dtype=torch.uint8)
    layout.pack({name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}, packed)
    flat = torch.full((layout.slot_elements,), torch.nan, dtype=dtype)
    layout.decode(packed, flat)
    parameters = layout.slot_parameters(flat)
    assert all(p.data_ptr() % 256 == flat.data_ptr() % 256 and not p.requires_grad for p in parameters)
    return {place.name: parameter for place, parameter in zip(layout.places, parameters, strict=True)}


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("storage", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_plain_storage_is_a_cast(storage: Storage, stored: torch.dtype, compute_dtype: torch.dtype) -> None:
    tensors = values()
    found = decoded(block_layout(SHAPES, storage), tensors, compute_dtype)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.to(stored).to(compute_dtype))


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_against_an_independent_quantisation(compute_dtype: torch.dtype) -> None:
    tensors = values()
    tensors["fc.weight"][2] = 0
    tensors["fc.weight"][3] *= 1e4
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    found = decoded(block_layout(SHAPES, "int8"), tensors, compute_dtype)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            assert torch.equal(found[name], tensor.to(torch.bfloat16).to(compute_dtype))
            continue
        for row, expected in zip(found[name], tensor, strict=True):
            scale = expected.abs().max() / 127
            codes = np.rint(expected.numpy() / (scale.numpy() or np.float32(1)))  # both round halves to even
            assert torch.equal(row, torch.from_numpy(codes * scale.numpy()).to(compute_dtype))
            # Half a step, and the rounding of the result.
            assert (row.float() - expected).abs().max() <= scale * 0.5 + expected.abs().max() * 2**-8


def test_int8_halves_the_bytes_of_a_block_of_opt() -> None:
    width, inner = 2560, 10240
    attention = ("q_proj", "k_proj", "v_proj", "out_proj")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width, width) for name in attention}
    shapes |= {f"{name}.bias": (width,) for name in (*attention, "fc2", "norm1.w", "norm1.b", "norm2.w", "norm2.b")}
    shapes |= {"fc1.weight": (inner, width), "fc1.bias": (inner,), "fc2.weight": (width, inner)}
    bf16, int8 = block_layout(shapes, "bf16"), block_layout(shapes, "int8")
    assert bf16.packed_bytes == pytest.approx(157.35e6, rel=1e-3)  # OPT-2.7b: 78.68M parameters a layer
    assert int8.packed_bytes == pytest.approx(bf16.packed_bytes / 2, rel=2e-3)
    assert int8.staging_bytes(torch.bfloat16) == int8.packed_bytes
    assert bf16.staging_bytes(torch.bfloat16) == 0
    assert bf16.staging_bytes(torch.float16) == bf16.packed_bytes


def test_what_cannot_be_packed_is_named() -> None:
    tensors = values()
    tensors["fc.weight"][1, 1] = torch.inf
    with pytest.raises(ValueError, match=r"fc\.weight holds a value that is not finite"):
        decoded(block_layout(SHAPES, "int8"), tensors, torch.float32)
    with pytest.raises(ValueError, match=r"fc\.bias has shape \(7,\), in the first block \(6,\)"):
        decoded(block_layout(SHAPES, "bf16"), values() | {"fc.bias": torch.zeros(7)}, torch.float32)
    with pytest.raises(ValueError, match=r"\['extra'\]"):
        decoded(block_layout(SHAPES, "bf16"), values() | {"extra": torch.zeros(7)}, torch.float32)
    with pytest.raises(ValueError, match="'int4'"):
        block_layout(SHAPES, "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cost_of_int8_on_logits_and_loss(dtype: torch.dtype) -> None:
    resident = small_opt(dtype)
    model, streamed = streamed_twin(resident, storage="int8")
    inputs = random_inputs(0, 9, resident)

    def logits(model: object) -> Tensor:
        with torch.no_grad():
            return model(inputs_embeds=inputs[0], attention_mask=inputs[1]).logits.float()  # type: ignore[operator]

    found, expected = logits(model), logits(resident)
    relative = ((found - expected).norm() / expected.norm()).item()
    loss_difference = abs(loss_of(model, inputs).item() - loss_of(resident, inputs).item())
    print(f"int8 against {dtype}: logits {relative:.2e} in norm, loss {loss_difference:.2e}")
    assert 0 < relative < 0.03
    assert loss_difference < 0.02
    assert torch.isfinite(found).all()
    loss_of(model, inputs).backward()
    assert streamed.bytes_moved == streamed.total_loads * streamed.layout.packed_bytes
