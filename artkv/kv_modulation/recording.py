"""What the Q-Former's cross-attention does in a forward pass: where its queries look, with the prefix and without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from artkv.kv_modulation.attention import PrefixedCrossAttention
from artkv.kv_modulation.modulation import AttentionInputs, LayerAttention, Modulation


@contextmanager
def recorded_attention(layers: Sequence[PrefixedCrossAttention]) -> Iterator[list[LayerAttention]]:
    """The list that gets a `LayerAttention` of each layer as a forward pass inside the `with` goes through it.

    Without gradients. A forward pass that is replayed from a CUDA graph passes no layer.
    """
    recorded: list[LayerAttention] = []

    def record(inputs: AttentionInputs, layer: int, modulation: Modulation) -> None:
        with torch.no_grad():
            recorded.append(modulation.record(inputs, layer))

    for layer in layers:
        layer.observer = record
    try:
        yield recorded
    finally:
        for layer in layers:
            layer.observer = None
