"""What art features change in one forward pass, as a record that is passed along.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class AttentionInputs:
    """What a cross-attention layer attends with before anything is modulated; nothing is copied.

    mask: as `scaled_dot_product_attention` takes it, over image tokens, or None.
    """

    query_IHKX: Tensor
    key_IHNX: Tensor
    value_IHNX: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class LayerAttention:
    """One cross-attention layer in one forward pass; float32, on the device of the model.

    on_prefix_IHKP, on_image_IHKN: the weights with which a query token adds up the values of prefix and image tokens,
    the gate included; each injection says in `record` what they sum to. P is 0 where the prefix was off, and where an
    injection has no prefix tokens in the cross-attention. Norms, (I, H, tokens), are of a head's vectors.
    sizes: further numbers of an injection by name, (I, H) each.
    """

    on_prefix_IHKP: Tensor
    on_image_IHKN: Tensor
    prefix_key_norm_IHP: Tensor
    prefix_value_norm_IHP: Tensor
    image_key_norm_IHN: Tensor
    image_value_norm_IHN: Tensor
    sizes: Mapping[str, Tensor] = field(default_factory=dict)


class Modulation:
    """What an injection hands down in one forward pass; this one changes nothing, which is stock BLIP-2.

    An argument, never state left on a module: so recomputation in backward sees what forward saw, and two graphs can be
    alive at once. Subclasses are frozen dataclasses that override what they change.
    """

    def queries(self, query_IKW: Tensor) -> Tensor:
        """The query tokens that go into the Q-Former, (I, K, W)."""
        return query_IKW

    def attend(self, inputs: AttentionInputs, layer: int) -> Tensor:
        """The output of cross-attention layer `layer`, counted from 0 among these, (I, H, K, X)."""
        return attend_to_image(inputs)

    def visual_tokens(self, visual_IKD: Tensor) -> Tensor:
        """What OPT reads of each painting, (I, K, D), or more tokens than K."""
        return visual_IKD

    def record(self, inputs: AttentionInputs, layer: int) -> LayerAttention:
        """Where the queries of `attend` look; the weights on the image sum to 1."""
        none = inputs.key_IHNX[:, :, :0]
        on_image = attention_probabilities(inputs.query_IHKX, inputs.key_IHNX, inputs.mask)
        return layer_attention(inputs, on_image[..., :0], on_image, none, none)


STOCK = Modulation()


def attend_to_image(inputs: AttentionInputs) -> Tensor:
    """Stock attention, (I, H, K, X)."""
    return scaled_dot_product_attention(inputs.query_IHKX, inputs.key_IHNX, inputs.value_IHNX, attn_mask=inputs.mask)


def opened_gate(gate: Tensor, layer: int) -> Tensor:
    """`tanh(g)` of a layer, to be multiplied with (I, H, K, X).

    gate: (1,), one for all layers; (Z,), one a layer; or (Z, H), one for each head of each layer.
    """
    if gate.dim() == 2:
        return torch.tanh(gate[layer])[:, None, None]
    return torch.tanh(gate) if gate.shape[0] == 1 else torch.tanh(gate[layer])


def layer_attention(
    inputs: AttentionInputs,
    on_prefix_IHKP: Tensor,
    on_image_IHKN: Tensor,
    key_prefix_IHPX: Tensor,
    value_prefix_IHPX: Tensor,
    sizes: Mapping[str, Tensor] | None = None,
) -> LayerAttention:
    """The record of these weights, with the norms of what they weigh."""
    return LayerAttention(
        on_prefix_IHKP,
        on_image_IHKN,
        prefix_key_norm_IHP=_norm(key_prefix_IHPX),
        prefix_value_norm_IHP=_norm(value_prefix_IHPX),
        image_key_norm_IHN=_norm(inputs.key_IHNX),
        image_value_norm_IHN=_norm(inputs.value_IHNX),
        sizes=dict(sizes or {}),
    )


def attention_probabilities(query_IHKX: Tensor, key_IHNX: Tensor, mask: Tensor | None) -> Tensor:
    """Attention probabilities in float32, as `scaled_dot_product_attention` has them inside. mask: bool or additive."""
    scores = query_IHKX.float() @ key_IHNX.float().transpose(-1, -2) * query_IHKX.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


def _norm(vectors: Tensor) -> Tensor:
    return vectors.float().norm(dim=-1)
