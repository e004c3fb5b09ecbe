"""The kernels against PyTorch's attention with a dense mask."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from artkv.models.opt.packed_sequences import tree_attention_mask
from tests.models.opt.trees import DEVICE, random_trees, tree_kernels

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    return tree_kernels()


def heads(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Queries, keys, values and a gradient, as OPT's projections lie: (R, H, L, X) of memory (R, L, H, X)."""
    generator = torch.Generator().manual_seed(seed)
    rows, num_heads, columns, width = shape
    made = [torch.randn(rows, columns, num_heads, width, generator=generator).to(dtype) for _ in range(4)]
    return [values.to(DEVICE).transpose(1, 2) for values in made]


def with_kernels(kernels: Any, inputs: list[Tensor], ends: Tensor, scale: float) -> list[Tensor]:
    *qkv, gradient = inputs
    out, log_sum = kernels.attend(*qkv, ends, scale)
    at_qkv = kernels.attend_backward(gradient.transpose(1, 2), (*qkv, ends, out, log_sum), scale)
    return [out.transpose(1, 2), *at_qkv]


def with_a_mask(inputs: list[Tensor], ends: Tensor, scale: float) -> list[Tensor]:
    """PyTorch's, in fp64."""
    *qkv, gradient = (values.double() for values in inputs)
    leaves = [values.requires_grad_() for values in qkv]
    mask = tree_attention_mask(ends, torch.float64)
    out = scaled_dot_product_attention(*leaves, attn_mask=mask, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    assert all(values.isfinite().all() for values in found)  # `max` passes over NaN
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


# OPT-2.7b's heads are 80 wide; 96 is the other sum of two that is above 64. 70 columns are a block and a bit, 144 what
# 48 questions have, 33 less than a block.
SHAPES = [(2, 2, 70, 80), (1, 2, 144, 16), (2, 1, 33, 96), (1, 1, 130, 64), (1, 1, 65, 128)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_a_dense_mask(kernels: ModuleType, shape: tuple[int, int, int, int]) -> None:
    inputs, ends = heads(shape, torch.float32, seed=0), random_trees(shape[0], shape[2], seed=1)
    found = with_kernels(kernels, inputs, ends, 0.3)
    # fp32 products and sums in another order.
    assert max(errors(found, with_a_mask(inputs, ends, 0.3))) < 2e-6


def test_half_precision_is_rounded_in_the_weights_alone(kernels: ModuleType) -> None:
    """NumPy has no bfloat16; float16 goes the same ways."""
    inputs, ends = heads((1, 2, 70, 80), torch.float16, seed=2), random_trees(1, 70, seed=3)
    found = with_kernels(kernels, inputs, ends, 0.1)
    assert {values.dtype for values in found} == {torch.float16}
    assert max(errors(found, with_a_mask(inputs, ends, 0.1))) < 2e-3  # float16 has 11 bits


def test_trees_side_by_side_know_nothing_of_each_other(kernels: ModuleType) -> None:
    """Blocks of keys that belong to another painting are passed over, and leave no trace."""
    one, other = random_trees(1, 100, seed=4), random_trees(1, 60, seed=5)
    # One root each, as a painting's first visual token is.
    one[0, 0], other[0, 0] = 100, 60
    inputs = heads((1, 1, 160, 16), torch.float32, seed=6)
    found = with_kernels(kernels, inputs, torch.cat([one, other + 100], dim=1), 0.3)
    for part, ends in ((slice(0, 100), one), (slice(100, 160), other)):
        alone = with_kernels(kernels, [values[:, :, part].contiguous() for values in inputs], ends, 0.3)
        for whole, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(whole[:, :, part], expected, rtol=1e-5, atol=1e-6)


def test_what_lies_apart_in_memory_is_read_alike(kernels: ModuleType) -> None:
    ends = random_trees(1, 40, seed=7)
    inputs = heads((1, 2, 40, 16), torch.float32, seed=8)
    scattered = [values.transpose(2, 3).contiguous().transpose(2, 3) for values in inputs]
    assert scattered[0].stride(3) != 1
    for one, other in zip(
        with_kernels(kernels, inputs, ends, 0.3), with_kernels(kernels, scattered, ends, 0.3), strict=True
    ):
        assert torch.equal(one, other)


def test_widths(kernels: ModuleType) -> None:
    assert {width: kernels.split_width(width) for width in (16, 64, 80, 96, 128)} == {
        16: (16, 0), 64: (64, 0), 80: (64, 16), 96: (64, 32), 128: (128, 0),
    }  # fmt: skip
    assert [kernels.split_width(width) for width in (8, 10, 24, 72, 112, 160, 256)] == [None] * 7
    with pytest.raises(ValueError, match="heads of width 24"):
        kernels.attend(*heads((1, 1, 8, 24), torch.float32, 0)[:3], random_trees(1, 8, 0), 1.0)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [33, 144, 280, 700])
def test_compiled_kernels_are_right_and_repeat_themselves(
    kernels: ModuleType, columns: int, dtype: torch.dtype
) -> None:
    inputs, ends = heads((3, 4, columns, 80), dtype, seed=columns), random_trees(3, columns, seed=columns)
    ends[:, 0] = columns  # as a painting's first token is: seen by all of its row
    found = with_kernels(kernels, inputs, ends, 0.2)
    assert max(errors(found, with_a_mask(inputs, ends, 0.2))) < 1e-2  # bfloat16 has 8 bits
    for _ in range(10):
        assert all(map(torch.equal, found, with_kernels(kernels, inputs, ends, 0.2)))
