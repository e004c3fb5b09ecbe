"""FLOPs: counted on a real step, and by formula at any size.

A multiply-add is two. Counted are matrix products, convolutions and attention as they are executed, attention as the
whole square of its positions whatever the mask; nothing elementwise.
"""

from dataclasses import dataclass
from typing import Any

import torch
from random_world import QUESTIONS_PER_PAINTING, Lengths, Size
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

# Backward of attention recomputes the scores: five products for forward's two.
_ATTENTION_BACKWARD = 2.5


class StepFlops(FlopCounterMode):
    """A counter that knows the CPU's attention too, which torch's own leaves out."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
            },
        )

    def result(self) -> int:
        """FLOPs so far."""
        return self.get_total_flops()


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _cpu_attention_backward(
    grad_out: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


@dataclass(frozen=True)
class Work:
    """What a way of training does for a question.

    encodes: pictures run through the ViT a question (0 with the cache, 1 without, or a painting's share).
    visual: paintings' visual tokens a question: 1, or a painting's share where packed.
    qformer: Q-Former passes a question. text_tokens: of those that OPT sees, padding included.
    logit_tokens: tokens whose logits are made. last_block_tokens: tokens that OPT's last block needs past its keys
        and values; None: all. has_prefix: whether the art encoder runs and the prefix is there.
    """

    encodes: float
    visual: float
    qformer: float
    text_tokens: float
    logit_tokens: float
    last_block_tokens: float | None = None
    has_prefix: bool = True
    row_tokens: float | None = None


def flops_per_question(size: Size, work: Work) -> dict[str, float]:
    """FLOPs of each part, forward and backward, for one question; frozen weights get no gradient of their own.

    row_tokens of `work`: the length of a row that attention squares; None: visual and text tokens of one question.
    """
    return {
        "vit": work.encodes * _vit(size),
        "efficientnet": work.encodes * 2 * size.efficientnet_macs * work.has_prefix,
        "qformer": work.qformer * _qformer(size, work.has_prefix),
        "projection": work.visual * size.num_queries * 2 * (2 * size.qformer_width * size.opt_width),
        "opt": _opt(size, work),
        "logits": work.logit_tokens * 2 * (2 * size.opt_width * size.vocabulary),
    }


def ways(lengths: Lengths, size: Size) -> dict[str, Work]:
    """The rows of the benchmark as `Work`, for questions of those lengths.

    Stock BLIP-2's rows are grouped by length, so padding is left out there; packed rows have next to none.
    """
    share = 1 / QUESTIONS_PER_PAINTING
    text = lengths.mean_tokens
    packed_row = size.num_queries + QUESTIONS_PER_PAINTING * lengths.own_tokens
    answers = lengths.answer_tokens
    unpacked = Work(0, 1, share, lengths.padded_tokens, answers)
    packed = Work(0, share, share, lengths.own_tokens, answers, answers, row_tokens=packed_row)
    return {
        "artkv": packed,
        "artkv, cache off": _with(packed, encodes=share),
        "artkv, packing off": unpacked,
        "artkv, answer-only logits off": _with(packed, logit_tokens=packed_row * share, last_block_tokens=None),
        "artkv, all three off": _with(unpacked, encodes=share, logit_tokens=lengths.padded_tokens),
        "stock BLIP-2": Work(1, 1, 1, text, text + size.num_queries, has_prefix=False),
        "stock BLIP-2, last logits only": Work(1, 1, 1, text, answers + 1, has_prefix=False),
    }


def _with(work: Work, **changes: Any) -> Work:
    return Work(**{**work.__dict__, **changes})


def _vit(size: Size) -> float:
    tokens, width = size.image_tokens, size.vit_width
    linear = size.vit_layers * (4 * width**2 + 2 * width * size.vit_mlp) * tokens
    attention = size.vit_layers * 2 * tokens**2 * width
    patches = (tokens - 1) * 3 * 14 * 14 * width
    return 2.0 * (linear + attention + patches)


def _qformer(size: Size, has_prefix: bool) -> float:
    """All is frozen but cross-attention, so nothing before the first layer's needs a gradient."""
    width, queries = size.qformer_width, size.num_queries
    keys = size.image_tokens + size.prefix_tokens * has_prefix
    self_linear, mlp = queries * 4 * width**2, queries * 8 * width**2
    self_attention, cross_attention = 2 * queries**2 * width, 2 * queries * keys * width
    total = 0.0
    for layer in range(size.qformer_layers):
        has_gradient = layer > 0
        total += self_linear * (1 + has_gradient) + self_attention * (1 + _ATTENTION_BACKWARD * has_gradient)
        if layer % 2 == 0:
            total += queries * width**2 * (2 + has_gradient)  # query: output, weight gradient, input gradient
            total += queries * width**2 * 3  # the output's projection
            total += size.image_tokens * 2 * size.vit_width * width * 2  # keys and values, and their weight gradients
            total += cross_attention * (1 + _ATTENTION_BACKWARD)
        total += mlp * 2
    if has_prefix:
        hidden = size.feature_dim * width + size.prefix_tokens * width * width
        total += 2 * hidden + size.prefix_tokens * width * width + 3 * size.prefix_tokens * 2 * width**2
    return 2.0 * total


def _opt(size: Size, work: Work) -> float:
    width = size.opt_width
    tokens = work.visual * size.num_queries + work.text_tokens
    row = work.row_tokens or (size.num_queries + work.text_tokens)
    last = tokens if work.last_block_tokens is None else work.last_block_tokens
    whole_block = tokens * (12 * width**2 * 2 + 2 * row * width * (1 + _ATTENTION_BACKWARD))
    last_block = tokens * 2 * width**2 * 2 + last * (10 * width**2 * 2 + 2 * row * width * (1 + _ATTENTION_BACKWARD))
    return 2.0 * ((size.opt_layers - 1) * whole_block + last_block)
