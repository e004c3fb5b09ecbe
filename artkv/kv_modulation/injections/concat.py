"""`concat`: keys and values of the art features in front of the image's own.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from artkv.config import KVModulationConfig
from artkv.kv_modulation.generator import KVPrefixGenerator
from artkv.kv_modulation.injection import Injection, ModelSizes
from artkv.kv_modulation.modulation import (
    AttentionInputs,
    LayerAttention,
    Modulation,
    attend_to_image,
    attention_probabilities,
    layer_attention,
    opened_gate,
)
from artkv.kv_modulation.sources import ArtSource


@dataclass(frozen=True)
class KVPrefix(Modulation):
    """`K = concat([K_prefix, K_img])`, and V likewise, in every cross-attention layer.

    With a gate g the output is `A(img) + tanh(g) (A(prefix; img) - A(img))`, which is the stock layer's at g = 0.
    (Keys and values of zero would not be: they take attention mass.) A prefix of no tokens is the stock layer too.

    k, v: (I, H, P, X) for all cross-attention layers, or (Z, I, H, P, X), one for each.
    gate: see `opened_gate`, or None for no gate.
    """

    k: Tensor
    v: Tensor
    gate: Tensor | None = None

    def layer(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """k and v of cross-attention layer `index`, each (I, H, P, X)."""
        k, v = (self.k, self.v) if self.k.dim() == 4 else (self.k[index], self.v[index])
        return k.to(dtype), v.to(dtype)

    def attend(self, inputs: AttentionInputs, layer: int) -> Tensor:
        """Attention to prefix and image together."""
        k_prefix_IHPX, v_prefix_IHPX = self.layer(layer, inputs.key_IHNX.dtype)
        out_IHKX = scaled_dot_product_attention(
            inputs.query_IHKX,
            torch.cat([k_prefix_IHPX, inputs.key_IHNX], dim=2),
            torch.cat([v_prefix_IHPX, inputs.value_IHNX], dim=2),
            attn_mask=_extend_by_ones(inputs.mask, k_prefix_IHPX.shape[2]),
        )
        if self.gate is not None:
            image_only_IHKX = attend_to_image(inputs)
            out_IHKX = image_only_IHKX + opened_gate(self.gate, layer) * (out_IHKX - image_only_IHKX)
        return out_IHKX

    def record(self, inputs: AttentionInputs, layer: int) -> LayerAttention:
        """Without a gate, attention probabilities. The weights sum to 1 over prefix and image.

        With a gate g they are `(1 - tanh(g)) a_image + tanh(g) a_both`, where `a` is a softmax over the image or over
        both, so those on the prefix are zero at g = 0 and negative below it.
        """
        k_prefix, v_prefix = self.layer(layer, inputs.key_IHNX.dtype)
        num_prefix = k_prefix.shape[2]
        keys = torch.cat([k_prefix, inputs.key_IHNX], dim=2)
        to_both = attention_probabilities(inputs.query_IHKX, keys, _extend_by_ones(inputs.mask, num_prefix))
        on_prefix, on_image = to_both[..., :num_prefix], to_both[..., num_prefix:]
        if self.gate is not None:
            opened = opened_gate(self.gate.float(), layer)
            image_only = attention_probabilities(inputs.query_IHKX, inputs.key_IHNX, inputs.mask)
            on_prefix, on_image = opened * on_prefix, image_only + opened * (on_image - image_only)
        return layer_attention(inputs, on_prefix, on_image, k_prefix, v_prefix)


class Concat(Injection):
    """Prefix keys and values of all tokens that the sources give."""

    has_prefix_tokens: ClassVar[bool] = True
    shares_attention: ClassVar[bool] = True

    def __init__(self, settings: KVModulationConfig, sources: Sequence[ArtSource], sizes: ModelSizes) -> None:
        super().__init__(settings, sources, sizes)
        self.kv_prefix_generator = KVPrefixGenerator(
            sources,
            hidden_size=sizes.width,
            num_prefix_tokens=settings.num_prefix_tokens,
            num_heads=sizes.heads,
            num_layers=None if settings.shared_across_layers else sizes.layers,
        )

    def forward(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> KVPrefix:
        """The prefix of each painting; see `Injection.forward`."""
        k, v = self.kv_prefix_generator(features, use)
        return KVPrefix(k, v, self.kv_prefix_gate)


def _extend_by_ones(mask: Tensor | None, num_prefix_tokens: int) -> Tensor | None:
    """The mask with `num_prefix_tokens` attended columns in front: True, or 0 where it is additive."""
    if mask is None:
        return None
    attended = mask.new_full((*mask.shape[:-1], num_prefix_tokens), mask.dtype == torch.bool)
    return torch.cat([attended, mask], dim=-1)
