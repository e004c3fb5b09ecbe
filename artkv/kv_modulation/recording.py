"""What the Q-Former's cross-attention does in a forward pass: where its queries look, with the prefix and without.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from artkv.kv_modulation.attention import AttentionInputs, PrefixedCrossAttention


@dataclass(frozen=True)
class LayerAttention:
    """One cross-attention layer in one forward pass; float32, on the device of the model.

    on_prefix_IHKP, on_image_IHKN: the weights with which a query token adds up the values of prefix and image tokens,
    the gate included: without one, attention probabilities. They sum to 1 over both. With a gate g they are
    `(1 - tanh(g)) a_image + tanh(g) a_both`, where `a` is a softmax over the image or over both, so those on the prefix
    are zero at g = 0 and negative below it. P is 0 where the prefix was off.
    Norms, (I, H, tokens), are of a head's vectors.
    """

    on_prefix_IHKP: Tensor
    on_image_IHKN: Tensor
    prefix_key_norm_IHP: Tensor
    prefix_value_norm_IHP: Tensor
    image_key_norm_IHN: Tensor
    image_value_norm_IHN: Tensor

    @classmethod
    def of(cls, inputs: AttentionInputs) -> "LayerAttention":
        """The attention that a layer pays, from what it attends with."""
        query, key, key_prefix = inputs.query_IHKX, inputs.key_IHNX, inputs.key_prefix_IHPX
        num_prefix = key_prefix.shape[2]
        to_both = _softmax(query, torch.cat([key_prefix, key], dim=2), inputs.mask_with_prefix)
        on_prefix, on_image = to_both[..., :num_prefix], to_both[..., num_prefix:]
        if inputs.gate is not None:
            opened = torch.tanh(inputs.gate.float())
            image_only = _softmax(query, key, inputs.mask)
            on_prefix, on_image = opened * on_prefix, image_only + opened * (on_image - image_only)
        vectors = (key_prefix, inputs.value_prefix_IHPX, key, inputs.value_IHNX)
        return cls(on_prefix, on_image, *(vector.float().norm(dim=-1) for vector in vectors))


@contextmanager
def recorded_attention(layers: Sequence[PrefixedCrossAttention]) -> Iterator[list[LayerAttention]]:
    """The list that gets a `LayerAttention` of each layer as a forward pass inside the `with` goes through it.

    Without gradients. A forward pass that is replayed from a CUDA graph passes no layer.
    """
    recorded: list[LayerAttention] = []

    def record(inputs: AttentionInputs) -> None:
        with torch.no_grad():
            recorded.append(LayerAttention.of(inputs))

    for layer in layers:
        layer.observer = record
    try:
        yield recorded
    finally:
        for layer in layers:
            layer.observer = None


def _softmax(query_IHKX: Tensor, key_IHNX: Tensor, mask: Tensor | None) -> Tensor:
    """Attention probabilities in float32, as `scaled_dot_product_attention` has them inside. mask: bool or additive."""
    scores = query_IHKX.float() @ key_IHNX.float().transpose(-1, -2) * query_IHKX.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)
