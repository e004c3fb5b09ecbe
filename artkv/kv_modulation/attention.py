"""The Q-Former's cross-attention, which asks a modulation for its output.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from artkv.kv_modulation.modulation import STOCK, AttentionInputs, Modulation

Observer = Callable[[AttentionInputs, int, Modulation], None]


class PrefixedCrossAttention(nn.Module):
    """A Q-Former's cross-attention whose output a `Modulation` makes of its queries, keys and values.

    It takes over the stock layer's `query`, `key` and `value`, so parameter names stay and stock checkpoints load.
    Without a modulation it computes what the stock layer does, bit for bit under SDPA.
    """

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, num_heads: int, layer_index: int) -> None:
        super().__init__()
        self.query = query
        self.key = key
        self.value = value
        self.num_heads = num_heads
        self.layer_index = layer_index  # among the cross-attention layers, from 0
        self.observer: Observer | None = None  # see `recorded_attention`

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        modulation: Modulation | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The attention output (I, K, W) and, as in the stock layer under SDPA, no weights.

        hidden_states: (I, K, W). encoder_hidden_states: (I, N, V).
        encoder_attention_mask: broadcastable to (I, H, K, N), bool or additive, or None for all ones.
        attention_mask belongs to self-attention and is not used, as in the stock layer.
        """
        if encoder_hidden_states is None:
            raise ValueError("cross-attention needs encoder_hidden_states, the image features")
        inputs = AttentionInputs(
            self._heads(self.query(hidden_states)),
            self._heads(self.key(encoder_hidden_states)),
            self._heads(self.value(encoder_hidden_states)),
            encoder_attention_mask,
        )
        modulation = modulation or STOCK
        if self.observer is not None:
            self.observer(inputs, self.layer_index, modulation)
        out_IHKX = modulation.attend(inputs, self.layer_index)
        return out_IHKX.transpose(1, 2).flatten(2).contiguous(), None

    def _heads(self, projected: Tensor) -> Tensor:
        batch_size, num_tokens, _ = projected.shape
        return projected.view(batch_size, num_tokens, self.num_heads, -1).transpose(1, 2)
