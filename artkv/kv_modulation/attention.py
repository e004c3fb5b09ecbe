"""Cross-attention whose keys and values begin with a prefix.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class KVPrefix:
    """The prefix of a forward pass: an argument, never state left on a module.

    So recomputation in backward sees what forward saw, and two graphs can be alive at once.

    k, v: (I, H, P, X) for all cross-attention layers, or (Z, I, H, P, X), one for each.
    gate: (1,), one for all layers, or None for no gate.
    """

    k: Tensor
    v: Tensor
    gate: Tensor | None = None

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """k and v, each (I, H, P, X), of cross-attention layer `index`."""
        if self.k.dim() == 4:
            return self.k, self.v
        return self.k[index], self.v[index]


@dataclass(frozen=True)
class AttentionInputs:
    """What a layer attends with in one forward pass, as an observer is shown it; nothing is copied.

    Without a prefix `key_prefix_IHPX` and `value_prefix_IHPX` have P = 0. mask, mask_with_prefix: as
    `scaled_dot_product_attention` takes them, over image tokens and over prefix and image tokens, or None.
    """

    query_IHKX: Tensor
    key_IHNX: Tensor
    value_IHNX: Tensor
    key_prefix_IHPX: Tensor
    value_prefix_IHPX: Tensor
    gate: Tensor | None
    mask: Tensor | None
    mask_with_prefix: Tensor | None


class PrefixedCrossAttention(nn.Module):
    """A Q-Former's cross-attention with `K = concat([K_prefix, K_img])`, and V likewise.

    It takes over the stock layer's `query`, `key` and `value`, so parameter names stay and stock
    checkpoints load. Without a prefix, or with one of zero tokens, it computes what the stock layer
    does, bit for bit under SDPA.

    With a gate g the output is `A(img) + tanh(g) (A(prefix; img) - A(img))`, which is the stock
    layer's at g = 0. (Keys and values of zero would not be: they take attention mass.)
    """

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, num_heads: int, layer_index: int) -> None:
        super().__init__()
        self.query = query
        self.key = key
        self.value = value
        self.num_heads = num_heads
        self.layer_index = layer_index  # among the cross-attention layers, from 0
        self.observer: Callable[[AttentionInputs], None] | None = None  # see `recorded_attention`

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        kv_prefix: KVPrefix | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The attention output (I, K, W) and, as in the stock layer under SDPA, no weights.

        hidden_states: (I, K, W). encoder_hidden_states: (I, N, V).
        encoder_attention_mask: broadcastable to (I, H, K, N), bool or additive, or None for all ones.
        attention_mask belongs to self-attention and is not used, as in the stock layer.
        """
        if encoder_hidden_states is None:
            raise ValueError("cross-attention needs encoder_hidden_states, the image features")
        query_IHKX = self._heads(self.query(hidden_states))
        key_IHNX = self._heads(self.key(encoder_hidden_states))
        value_IHNX = self._heads(self.value(encoder_hidden_states))
        mask = encoder_attention_mask

        if kv_prefix is None:
            if self.observer is not None:
                none, gate = key_IHNX[:, :, :0], None
                self.observer(AttentionInputs(query_IHKX, key_IHNX, value_IHNX, none, none, gate, mask, mask))
            out_IHKX = scaled_dot_product_attention(query_IHKX, key_IHNX, value_IHNX, attn_mask=mask)
            return self._merge(out_IHKX), None

        k_prefix_IHPX, v_prefix_IHPX = (part.to(key_IHNX.dtype) for part in kv_prefix.layer(self.layer_index))
        full_mask = _extend_by_ones(mask, k_prefix_IHPX.shape[2])
        if self.observer is not None:
            prefix = (k_prefix_IHPX, v_prefix_IHPX, kv_prefix.gate)
            self.observer(AttentionInputs(query_IHKX, key_IHNX, value_IHNX, *prefix, mask, full_mask))
        out_IHKX = scaled_dot_product_attention(
            query_IHKX,
            torch.cat([k_prefix_IHPX, key_IHNX], dim=2),
            torch.cat([v_prefix_IHPX, value_IHNX], dim=2),
            attn_mask=full_mask,
        )
        if kv_prefix.gate is not None:
            image_only_IHKX = scaled_dot_product_attention(query_IHKX, key_IHNX, value_IHNX, attn_mask=mask)
            out_IHKX = image_only_IHKX + torch.tanh(kv_prefix.gate) * (out_IHKX - image_only_IHKX)
        return self._merge(out_IHKX), None

    def _heads(self, projected: Tensor) -> Tensor:
        batch_size, num_tokens, _ = projected.shape
        return projected.view(batch_size, num_tokens, self.num_heads, -1).transpose(1, 2)

    @staticmethod
    def _merge(out_IHKX: Tensor) -> Tensor:
        return out_IHKX.transpose(1, 2).flatten(2).contiguous()


def _extend_by_ones(mask: Tensor | None, num_prefix_tokens: int) -> Tensor | None:
    """The mask with `num_prefix_tokens` attended columns in front: True, or 0 where it is additive."""
    if mask is None:
        return None
    attended = mask.new_full((*mask.shape[:-1], num_prefix_tokens), mask.dtype == torch.bool)
    return torch.cat([attended, mask], dim=-1)
