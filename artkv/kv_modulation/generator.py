"""The small trained network that turns a painting's art features into key/value tokens.

Letters in tensor names are explained in `artkv.batch`; here W = H X.
"""

import torch
from torch import Tensor, nn

# Standard deviation of BERT's and BLIP-2's weights; the learned tokens and projections start there.
_INITIALIZER_RANGE = 0.02


class KVPrefixGenerator(nn.Module):
    """Maps pooled art features to prefix keys and values for the Q-Former's cross-attention.

    An MLP (Linear, GELU, Linear) gives each of the P tokens its own projection of the features, a
    learned token is added to each, and one Linear each makes keys and values. Adding one projected
    vector to all tokens instead would make the picture's part the same in all of them (rank 1).

    Args:
        feature_dim: width F of the art features, 1536 for EfficientNet-B3.
        hidden_size: width W of the Q-Former.
        num_prefix_tokens: P; 0 gives empty prefixes.
        num_heads: heads H of the cross-attention; must divide `hidden_size`.
        num_layers: None for one K/V projection that all cross-attention layers share; a number Z for
            one projection a layer.
    """

    def __init__(
        self,
        feature_dim: int = 1536,
        hidden_size: int = 768,
        num_prefix_tokens: int = 8,
        num_heads: int = 12,
        num_layers: int | None = None,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide hidden_size={hidden_size}")
        self.num_prefix_tokens = num_prefix_tokens
        self.num_heads = num_heads
        self.num_layers = num_layers
        projected_size = hidden_size * (num_layers or 1)
        self.mlp = nn.Sequential(
            nn.Linear(feature_dim, hidden_size), nn.GELU(), nn.Linear(hidden_size, num_prefix_tokens * hidden_size)
        )
        self.prefix_tokens = nn.Parameter(torch.empty(num_prefix_tokens, hidden_size))
        self.key = nn.Linear(hidden_size, projected_size)
        self.value = nn.Linear(hidden_size, projected_size)
        nn.init.normal_(self.prefix_tokens, std=_INITIALIZER_RANGE)

    def forward(self, features_IF: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (I, H, P, X), or (Z, I, H, P, X) with `num_layers`.

        `features_IF` may have any float dtype; the result has the generator's.
        """
        features_IF = features_IF.to(self.prefix_tokens.dtype)
        batch_size = features_IF.shape[0]
        tokens_IPW = self.mlp(features_IF).view(batch_size, self.num_prefix_tokens, -1) + self.prefix_tokens
        return self._split(self.key(tokens_IPW)), self._split(self.value(tokens_IPW))

    def _split(self, projected: Tensor) -> Tensor:
        batch_size, num_tokens, _ = projected.shape
        if self.num_layers is None:
            return projected.view(batch_size, num_tokens, self.num_heads, -1).transpose(1, 2)
        per_layer = projected.view(batch_size, num_tokens, self.num_layers, self.num_heads, -1)
        return per_layer.permute(2, 0, 3, 1, 4)
