"""OPT's attention on CUDA, with kernels of its own where rows are packed.

Letters in tensor names are explained in `artkv.batch`.
"""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from artkv.distributed import World
from artkv.models.opt.packed_sequences import tree_attention_mask

TREE_ATTENTION = "artkv_tree"
"""What to give to a transformers model's `set_attn_implementation`: in place of a mask it takes `subtree_end`, (R, L)
int64, for queries, keys and values of the same columns. With a mask, or none, it is transformers' `sdpa`.
"""

# bfloat16's rounding, norm-wise; a kernel that was compiled wrongly is off by much more.
_TOLERANCE = 2e-2
_FIRST_CAPABILITY = (8, 0)  # of those that multiply bfloat16
_REMEDY = "Triton needs a C compiler, such as gcc, Python's headers, and a TRITON_CACHE_DIR that can be written"


def attention_within_trees(
    module: Any,
    query_RHLX: Tensor,
    key_RHLX: Tensor,
    value_RHLX: Tensor,
    mask: Tensor | None,
    scaling: float = 1.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The output, (R, L, H, X), and no weights. See `TREE_ATTENTION`."""
    if mask is not None and is_subtree_end(mask):
        out_RLHX: Tensor = _WithinTrees.apply(query_RHLX, key_RHLX, value_RHLX, mask, scaling)
        return out_RLHX, None
    out_RLHX, _ = sdpa_attention_forward(module, query_RHLX, key_RHLX, value_RHLX, mask, scaling=scaling, **options)
    return out_RLHX, None


AttentionInterface.register(TREE_ATTENTION, attention_within_trees)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


def is_subtree_end(mask: Tensor) -> bool:
    """Whether this is what tells who sees whom in packed rows, and no mask."""
    return mask.dim() == 2 and mask.dtype == torch.int64


def seen_in_packed_rows(language_model: Any, subtree_end_RL: Tensor, dtype: torch.dtype) -> Tensor:
    """What to give to OPT's blocks as `attention_mask`: `subtree_end` itself, or the dense mask of it."""
    if language_model.config._attn_implementation == TREE_ATTENTION:
        return subtree_end_RL
    return tree_attention_mask(subtree_end_RL, dtype)


def use_tree_attention(language_model: Any, dtype: torch.dtype, world: World) -> None:
    """Has OPT attend by `TREE_ATTENTION` where its kernels work on the CUDA devices of all ranks.

    Called on all ranks, which do alike: else they would round in two ways. Where the kernels should work and fail, a
    line says why. language_model: transformers' OPTForCausalLM.
    """
    if world.device.type != "cuda":
        return
    config = language_model.config
    width = config.hidden_size // config.num_attention_heads
    is_meant = dtype in (torch.bfloat16, torch.float16)
    is_meant = is_meant and torch.cuda.get_device_capability(world.device) >= _FIRST_CAPABILITY
    reasons = world.gather(why_kernels_fail(width, dtype, world.device) if is_meant else "")
    if all(reason is None for reason in reasons):
        language_model.set_attn_implementation(TREE_ATTENTION)
    elif world.is_main and any(reasons):
        rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
        of_rank = f" on rank {rank}" if world.size > 1 else ""
        print(
            "artkv: attention within packed rows is PyTorch's, which is slower: "
            f"Triton's kernels failed{of_rank} with {reason}",
            file=sys.stderr,
        )


@cache
def why_kernels_fail(width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """None where the kernels are right on this device, "" where they are for no heads of this width, else why not.

    An error is told by its first line, with the remedy.

    They are compiled at the first call on a machine, which takes some seconds and a C compiler, and kept in Triton's
    cache.
    """
    try:
        from artkv.models.opt import tree_kernels
    except ImportError as error:
        return f"{type(error).__name__}: {error}; install triton, which torch's builds for CUDA bring along"
    if tree_kernels.split_width(width) is None:
        return ""
    generator = torch.Generator(device).manual_seed(0)
    num_columns = 80
    made = [torch.randn(2, num_columns, 2, width, device=device, dtype=dtype, generator=generator) for _ in range(4)]
    *inputs, gradient = (values.transpose(1, 2) for values in made)
    # Two trees side by side: a root that all see, and under it branches of five columns.
    columns = torch.arange(num_columns, device=device)
    half = num_columns // 2
    ends = torch.where(columns % half == 0, columns + half, (columns // 5 + 1) * 5).expand(2, -1)
    try:
        found = _with_gradients(lambda *qkv: _WithinTrees.apply(*qkv, ends, 0.5).transpose(1, 2), inputs, gradient)
    except Exception as error:  # whatever Triton, its compilers and the driver raise
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}; {_REMEDY}"
    mask = tree_attention_mask(ends, torch.float32)
    expected = _with_gradients(
        lambda q, k, v: torch.softmax(0.5 * q @ k.transpose(2, 3) + mask, dim=-1) @ v,
        [values.float() for values in inputs],
        gradient.float(),
    )
    for one, other in zip(found, expected, strict=True):
        difference = float((one.float() - other).norm() / other.norm())
        if not difference < _TOLERANCE:  # nor is it NaN
            return f"results that differ by {difference:.2g}"
    return None


def _with_gradients(attend: Any, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [values.detach().requires_grad_() for values in inputs]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


class _WithinTrees(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_RHLX: Tensor, k_RHLX: Tensor, v_RHLX: Tensor, ends_RL: Tensor, scale: float) -> Tensor:
        from artkv.models.opt import tree_kernels

        out_RLHX, log_sum_RHL = tree_kernels.attend(q_RHLX, k_RHLX, v_RHLX, ends_RL, scale)
        ctx.save_for_backward(q_RHLX, k_RHLX, v_RHLX, ends_RL, out_RLHX, log_sum_RHL)
        ctx.scale = scale
        return out_RLHX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_RLHX: Tensor) -> tuple[Tensor | None, ...]:
        from artkv.models.opt import tree_kernels

        return (*tree_kernels.attend_backward(gradient_RLHX, ctx.saved_tensors, ctx.scale), None, None)
