"""Activation checkpointing of decoder blocks that are in eval mode."""

from collections.abc import Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Makes each block keep only its input for backward and compute its inside again there.

    transformers' own switch acts in training mode only, and frozen blocks never are in it. The variant is
    the non-reentrant one: the reentrant one fails under ZeRO with 'gradient computed twice'. Generation
    and any forward without gradients run as before.
    """
    for block in blocks:
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Any) -> Any:
    @wraps(forward)
    def recomputed(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)

    return recomputed
