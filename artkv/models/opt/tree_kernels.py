"""Triton kernels of attention within packed rows, where a tree says which column sees which.

Column i sees column j where `j <= i < subtree_end[j]`. A dense mask would have to be read by every head of every block,
and of PyTorch's kernels the one that takes it is three times as slow as one that needs none. Here what is seen is told
from `subtree_end`, blocks of keys that no query of a block sees are passed over, and no two programs add to the same
number, so that a gradient is the same bits each time.

Scores are in units of log2, since the hardware has an exp2. `X` is a head's width, the sum of two powers of two: 80 is
64 and 16, where padding to 128 would be half as much work again.
"""

# A jitted function's arguments have no types that Python knows.
# mypy: allow-untyped-defs, allow-untyped-calls

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
_NARROWEST_DOT = 16
# Less than any score, and a number: a row that has seen nothing yet is corrected once it sees something.
_UNSEEN = tl.constexpr(-1.0e30)


class Blocks(NamedTuple):
    """How a kernel cuts its work: queries and keys of a block, warps of a program, stages of its loads."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


# The fastest of five each on an H200, at OPT-2.7b's width and 144 and 280 columns.
FORWARD = Blocks(64, 32, 4, 2)
BACKWARD = Blocks(64, 64, 4, 1)


def split_width(head_width: int) -> tuple[int, int] | None:
    """A head's width as a power of two and the rest, that is 0 or one too; None where it is no such sum."""
    main = 1 << (head_width.bit_length() - 1)
    rest = head_width - main
    is_sum = main >= _NARROWEST_DOT and (rest == 0 or (rest >= _NARROWEST_DOT and rest & (rest - 1) == 0))
    return (main, rest) if is_sum and head_width <= 128 else None


def attend(q_RHLX: Tensor, k_RHLX: Tensor, v_RHLX: Tensor, subtree_end_RL: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The output, (R, L, H, X), and log2 of the sum of each query's exponentials, (R, H, L) float32.

    subtree_end: above each column's own number, so that each sees itself at least.
    """
    num_rows, num_heads, num_columns, width = q_RHLX.shape
    out_RLHX = q_RHLX.new_empty((num_rows, num_columns, num_heads, width))
    log_sum_RHL = q_RHLX.new_empty((num_rows, num_heads, num_columns), dtype=torch.float32)
    main, rest = _width(width)
    q, k, v = _inner_dense(q_RHLX), _inner_dense(k_RHLX), _inner_dense(v_RHLX)
    blocks = FORWARD
    with _device_of(q):
        _attend[(triton.cdiv(num_columns, blocks.queries) * num_rows * num_heads,)](
            q, k, v, subtree_end_RL.contiguous(), out_RLHX, log_sum_RHL, scale * _LOG2_E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], num_heads, num_columns,
            X_MAIN=main, X_REST=rest, QUERIES=blocks.queries, KEYS=blocks.keys,
            num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    return out_RLHX, log_sum_RHL


def attend_backward(
    gradient_RLHX: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients at queries, keys and values, (R, H, L, X) each.

    saved: queries, keys, values, `subtree_end`, and what `attend` gave.
    """
    q_RHLX, k_RHLX, v_RHLX, subtree_end_RL, out_RLHX, log_sum_RHL = saved
    num_rows, num_heads, num_columns, width = q_RHLX.shape
    main, rest = _width(width)
    q, k, v = _inner_dense(q_RHLX), _inner_dense(k_RHLX), _inner_dense(v_RHLX)
    gradients = [torch.empty_like(out_RLHX) for _ in range(3)]
    blocks = BACKWARD
    with _device_of(q):
        _attend_backward[(triton.cdiv(num_columns, blocks.keys) * num_rows * num_heads,)](
            q, k, v, subtree_end_RL.contiguous(), out_RLHX, log_sum_RHL, gradient_RLHX.contiguous(), *gradients,
            scale, scale * _LOG2_E, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], num_heads, num_columns,
            X_MAIN=main, X_REST=rest, BLOCK=blocks.keys, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    at_q, at_k, at_v = (gradient.transpose(1, 2) for gradient in gradients)
    return at_q, at_k, at_v


def _width(head_width: int) -> tuple[int, int]:
    found = split_width(head_width)
    if found is None:
        raise ValueError(f"heads of width {head_width}; expected a power of two from 16 to 128, or a sum of two")
    return found


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _inner_dense(tensor: Tensor) -> Tensor:
    """The same values, a head's side by side."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


# A head's values are a pair of matrices, `X_MAIN` and `X_REST` wide. Without a rest the second one is not used.


@triton.jit
def _load(pointer, columns, stride, num_columns, X_MAIN: tl.constexpr, X_REST: tl.constexpr):
    """A pair of (columns, X); zeros beyond the last column."""
    places = pointer + columns[:, None] * stride
    is_there = (columns < num_columns)[:, None]
    main = tl.load(places + tl.arange(0, X_MAIN)[None, :], mask=is_there, other=0.0)
    rest = main
    if X_REST > 0:
        rest = tl.load(places + X_MAIN + tl.arange(0, X_REST)[None, :], mask=is_there, other=0.0)
    return main, rest


@triton.jit
def _store(pointer, columns, stride, num_columns, main, rest, X_MAIN: tl.constexpr, X_REST: tl.constexpr):
    places = pointer + columns[:, None] * stride
    is_there = (columns < num_columns)[:, None]
    tl.store(places + tl.arange(0, X_MAIN)[None, :], main.to(pointer.dtype.element_ty), mask=is_there)
    if X_REST > 0:
        rest_places = places + X_MAIN + tl.arange(0, X_REST)[None, :]
        tl.store(rest_places, rest.to(pointer.dtype.element_ty), mask=is_there)


@triton.jit
def _zeros(COLUMNS: tl.constexpr, X_MAIN: tl.constexpr, X_REST: tl.constexpr):
    main = tl.zeros([COLUMNS, X_MAIN], tl.float32)
    rest = main
    if X_REST > 0:
        rest = tl.zeros([COLUMNS, X_REST], tl.float32)
    return main, rest


@triton.jit
def _products(a_main, a_rest, b_main, b_rest, X_REST: tl.constexpr):
    """Of each column of a with each of b."""
    found = tl.dot(a_main, tl.trans(b_main), input_precision="ieee")
    if X_REST > 0:
        found = tl.dot(a_rest, tl.trans(b_rest), found, input_precision="ieee")
    return found


@triton.jit
def _add_weighted(main, rest, weights, values_main, values_rest, X_REST: tl.constexpr):
    main = tl.dot(weights, values_main, main, input_precision="ieee")
    if X_REST > 0:
        rest = tl.dot(weights, values_rest, rest, input_precision="ieee")
    return main, rest


@triton.jit
def _mean_at_weights(out, gradient, columns, stride, num_columns, X_MAIN: tl.constexpr, X_REST: tl.constexpr):
    """What softmax's backward takes from each query's gradients: the output times its gradient, summed."""
    out_main, out_rest = _load(out, columns, stride, num_columns, X_MAIN, X_REST)
    main, rest = _load(gradient, columns, stride, num_columns, X_MAIN, X_REST)
    mean = tl.sum(out_main.to(tl.float32) * main.to(tl.float32), 1)
    if X_REST > 0:
        mean += tl.sum(out_rest.to(tl.float32) * rest.to(tl.float32), 1)
    return mean


@triton.jit
def _place(num_heads, num_columns, BLOCK: tl.constexpr):
    """This program's row, its head, and the first column of its block.

    The grid has one dimension, since its others end at 65535; the blocks of a head are side by side.
    """
    num_blocks = tl.cdiv(num_columns, BLOCK)
    number = tl.program_id(0)
    return (
        (number // num_blocks // num_heads).to(tl.int64),
        number // num_blocks % num_heads,
        number % num_blocks * BLOCK,
    )


@triton.jit(do_not_specialize=["num_heads", "num_columns"])
def _attend(
    q, k, v, subtree_end, out, log_sum, scale_log2,
    q_row, q_head, q_column, k_row, k_head, k_column, v_row, v_head, v_column, num_heads, num_columns,
    X_MAIN: tl.constexpr, X_REST: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row, head, first = _place(num_heads, num_columns, QUERIES)
    q += row * q_row + head * q_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    subtree_end += row * num_columns
    log_sum += (row * num_heads + head) * num_columns
    out += (row * num_columns * num_heads + head) * (X_MAIN + X_REST)
    out_column = num_heads * (X_MAIN + X_REST)
    columns = first + tl.arange(0, QUERIES)
    q_main, q_rest = _load(q, columns, q_column, num_columns, X_MAIN, X_REST)
    out_main, out_rest = _zeros(QUERIES, X_MAIN, X_REST)
    most = tl.full([QUERIES], _UNSEEN, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for start in range(0, tl.minimum(first + QUERIES, num_columns), KEYS):
        keys = start + tl.arange(0, KEYS)
        ends = tl.load(subtree_end + keys, mask=keys < num_columns, other=0)
        if tl.max(ends, 0) > first:
            k_main, k_rest = _load(k, keys, k_column, num_columns, X_MAIN, X_REST)
            is_seen = (keys[None, :] <= columns[:, None]) & (columns[:, None] < ends[None, :])
            scores = _products(q_main, q_rest, k_main, k_rest, X_REST) * scale_log2
            scores = tl.where(is_seen, scores, _UNSEEN)
            new_most = tl.maximum(most, tl.max(scores, 1))
            weights = tl.exp2(scores - new_most[:, None])
            shrink = tl.exp2(most - new_most)
            total = total * shrink + tl.sum(weights, 1)
            most = new_most
            v_main, v_rest = _load(v, keys, v_column, num_columns, X_MAIN, X_REST)
            out_main *= shrink[:, None]
            if X_REST > 0:
                out_rest *= shrink[:, None]
            out_main, out_rest = _add_weighted(out_main, out_rest, weights.to(v_main.dtype), v_main, v_rest, X_REST)
    out_main /= total[:, None]
    if X_REST > 0:
        out_rest /= total[:, None]
    _store(out, columns, out_column, num_columns, out_main, out_rest, X_MAIN, X_REST)
    tl.store(log_sum + columns, most + tl.log2(total), mask=columns < num_columns)


@triton.jit(do_not_specialize=["num_heads", "num_columns"])
def _attend_backward(
    q, k, v, subtree_end, out, log_sum, gradient, at_q, at_k, at_v, scale, scale_log2,
    q_row, q_head, q_column, k_row, k_head, k_column, v_row, v_head, v_column, num_heads, num_columns,
    X_MAIN: tl.constexpr, X_REST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A program makes the gradients at one block of keys and values, from all queries that see them, and then that at
    # the block of queries in the same place.
    row, head, first = _place(num_heads, num_columns, BLOCK)
    q += row * q_row + head * q_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    subtree_end += row * num_columns
    log_sum += (row * num_heads + head) * num_columns
    own = (row * num_columns * num_heads + head) * (X_MAIN + X_REST)
    column = num_heads * (X_MAIN + X_REST)
    out += own
    gradient += own
    mine = first + tl.arange(0, BLOCK)
    _at_keys(
        q, k, v, subtree_end, out, log_sum, gradient, at_k + own, at_v + own, scale, scale_log2,
        q_column, k_column, v_column, column, num_columns, first, mine, X_MAIN, X_REST, BLOCK,
    )  # fmt: skip
    _at_queries(
        q, k, v, subtree_end, out, log_sum, gradient, at_q + own, scale, scale_log2,
        q_column, k_column, v_column, column, num_columns, first, mine, X_MAIN, X_REST, BLOCK,
    )  # fmt: skip


@triton.jit
def _at_keys(
    q, k, v, subtree_end, out, log_sum, gradient, at_k, at_v, scale, scale_log2,
    q_column, k_column, v_column, column, num_columns, first, mine,
    X_MAIN: tl.constexpr, X_REST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ends = tl.load(subtree_end + mine, mask=mine < num_columns, other=0)
    k_main, k_rest = _load(k, mine, k_column, num_columns, X_MAIN, X_REST)
    v_main, v_rest = _load(v, mine, v_column, num_columns, X_MAIN, X_REST)
    at_k_main, at_k_rest = _zeros(BLOCK, X_MAIN, X_REST)
    at_v_main, at_v_rest = _zeros(BLOCK, X_MAIN, X_REST)
    for start in range(first, tl.max(ends, 0).to(tl.int32), BLOCK):
        asking = start + tl.arange(0, BLOCK)
        q_main, q_rest = _load(q, asking, q_column, num_columns, X_MAIN, X_REST)
        gradient_main, gradient_rest = _load(gradient, asking, column, num_columns, X_MAIN, X_REST)
        mean = _mean_at_weights(out, gradient, asking, column, num_columns, X_MAIN, X_REST)
        sums = tl.load(log_sum + asking, mask=asking < num_columns, other=0.0)
        is_seen = (mine[:, None] <= asking[None, :]) & (asking[None, :] < ends[:, None])
        scores = _products(k_main, k_rest, q_main, q_rest, X_REST)
        weights = tl.where(is_seen, tl.exp2(scores * scale_log2 - sums[None, :]), 0.0)
        at_weights = _products(v_main, v_rest, gradient_main, gradient_rest, X_REST)
        at_scores = (weights * (at_weights - mean[None, :])).to(q_main.dtype)
        weights = weights.to(q_main.dtype)
        at_v_main, at_v_rest = _add_weighted(at_v_main, at_v_rest, weights, gradient_main, gradient_rest, X_REST)
        at_k_main, at_k_rest = _add_weighted(at_k_main, at_k_rest, at_scores, q_main, q_rest, X_REST)
    at_k_main *= scale
    if X_REST > 0:
        at_k_rest *= scale
    _store(at_k, mine, column, num_columns, at_k_main, at_k_rest, X_MAIN, X_REST)
    _store(at_v, mine, column, num_columns, at_v_main, at_v_rest, X_MAIN, X_REST)


@triton.jit
def _at_queries(
    q, k, v, subtree_end, out, log_sum, gradient, at_q, scale, scale_log2,
    q_column, k_column, v_column, column, num_columns, first, mine,
    X_MAIN: tl.constexpr, X_REST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    q_main, q_rest = _load(q, mine, q_column, num_columns, X_MAIN, X_REST)
    gradient_main, gradient_rest = _load(gradient, mine, column, num_columns, X_MAIN, X_REST)
    mean = _mean_at_weights(out, gradient, mine, column, num_columns, X_MAIN, X_REST)
    sums = tl.load(log_sum + mine, mask=mine < num_columns, other=0.0)
    at_q_main, at_q_rest = _zeros(BLOCK, X_MAIN, X_REST)
    for start in range(0, tl.minimum(first + BLOCK, num_columns), BLOCK):
        keys = start + tl.arange(0, BLOCK)
        ends = tl.load(subtree_end + keys, mask=keys < num_columns, other=0)
        if tl.max(ends, 0) > first:
            k_main, k_rest = _load(k, keys, k_column, num_columns, X_MAIN, X_REST)
            v_main, v_rest = _load(v, keys, v_column, num_columns, X_MAIN, X_REST)
            is_seen = (keys[None, :] <= mine[:, None]) & (mine[:, None] < ends[None, :])
            scores = _products(q_main, q_rest, k_main, k_rest, X_REST)
            weights = tl.where(is_seen, tl.exp2(scores * scale_log2 - sums[:, None]), 0.0)
            at_weights = _products(gradient_main, gradient_rest, v_main, v_rest, X_REST)
            at_scores = (weights * (at_weights - mean[:, None])).to(k_main.dtype)
            at_q_main, at_q_rest = _add_weighted(at_q_main, at_q_rest, at_scores, k_main, k_rest, X_REST)
    at_q_main *= scale
    if X_REST > 0:
        at_q_rest *= scale
    _store(at_q, mine, column, num_columns, at_q_main, at_q_rest, X_MAIN, X_REST)
