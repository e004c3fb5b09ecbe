"""The small trained networks that turn a painting's art features into tokens, and these into keys and values.

Letters in tensor names are explained in `artkv.batch`; here W = H X.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from artkv.kv_modulation.sources import ArtSource

T = TypeVar("T")

# Standard deviation of BERT's and BLIP-2's weights; the learned tokens and projections start there.
_INITIALIZER_RANGE = 0.02

_EFFICIENTNET_B3 = (ArtSource("efficientnet", 1536),)


class ArtTokens(nn.Module):
    """Tokens in the Q-Former's width, of each source one after another.

    Of one pooled source an MLP (Linear, GELU, Linear) gives each of the P tokens its own projection of the features,
    and a learned token is added to each. Adding one projected vector to all tokens instead would make the picture's
    part the same in all of them (rank 1). Several sources, and token features, have a `SourceTokens` each.

    Args:
        sources: of distinct names. num_prefix_tokens: P of each pooled source; 0 gives no tokens.
    """

    def __init__(self, sources: Sequence[ArtSource], hidden_size: int, num_prefix_tokens: int) -> None:
        super().__init__()
        if not sources or len({source.name for source in sources}) < len(sources):
            raise ValueError(f"art sources {[source.name for source in sources]}: give one or more of distinct names")
        self.num_prefix_tokens = num_prefix_tokens
        self.is_single = len(sources) == 1 and sources[0].num_tokens is None
        if self.is_single:
            self.mlp = pooled_projection(sources[0].feature_dim, hidden_size, num_prefix_tokens * hidden_size)
            self.prefix_tokens = nn.Parameter(torch.empty(num_prefix_tokens, hidden_size))
        else:
            self.encoders = nn.ModuleDict(
                {source.name: SourceTokens(source, hidden_size, num_prefix_tokens) for source in sources}
            )

    def draw_tokens(self) -> None:
        """Gives learned tokens and vectors their first values; after all layers, which draw as they are made."""
        for name, parameter in self.named_parameters():
            if name.rsplit(".", 1)[-1] in ("prefix_tokens", "type_vector"):
                nn.init.normal_(parameter, std=_INITIALIZER_RANGE)

    def tokens(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> Tensor:
        """(I, P, W), P of all sources in use together; see `Injection.forward`."""
        used = in_use(features, use)
        if self.is_single:
            (features_IF,) = used
            features_IF = features_IF.to(self.prefix_tokens.dtype)
            batch_size = features_IF.shape[0]
            return self.mlp(features_IF).view(batch_size, self.num_prefix_tokens, -1) + self.prefix_tokens
        encoders = in_use(list(self.encoders.values()), use)
        return torch.cat([encoder(one) for encoder, one in zip(encoders, used, strict=True)], dim=1)


class SourceTokens(nn.Module):
    """One source's tokens among those of several: a projection, a type vector and a vector for each place of its own.

    A pooled source gives `num_prefix_tokens` tokens, as of `ArtTokens`; one of M tokens gives M, each by the same MLP.
    """

    def __init__(self, source: ArtSource, hidden_size: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_tokens = source.prefix_tokens(num_prefix_tokens)
        width = hidden_size * (num_prefix_tokens if source.num_tokens is None else 1)
        self.mlp = pooled_projection(source.feature_dim, hidden_size, width)
        self.prefix_tokens = nn.Parameter(torch.empty(self.num_tokens, hidden_size))
        self.type_vector = nn.Parameter(torch.empty(hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        """(I, P, W) of (I, F), or (I, M, W) of (I, M, F)."""
        projected = self.mlp(features.to(self.type_vector.dtype))
        tokens_IPW = projected.view(projected.shape[0], self.num_tokens, -1)
        return tokens_IPW + self.prefix_tokens + self.type_vector


class KVPrefixGenerator(ArtTokens):
    """Maps art features to prefix keys and values for the Q-Former's cross-attention.

    One Linear each makes keys and values of the tokens.

    Args:
        sources: what each art encoder gives; by default EfficientNet-B3's pooled 1536 numbers.
        hidden_size: width W of the Q-Former.
        num_prefix_tokens: P of a pooled source; 0 gives empty prefixes.
        num_heads: heads H of the cross-attention; must divide `hidden_size`.
        num_layers: None for one K/V projection that all cross-attention layers share; a number Z for
            one projection a layer.
    """

    def __init__(
        self,
        sources: Sequence[ArtSource] = _EFFICIENTNET_B3,
        hidden_size: int = 768,
        num_prefix_tokens: int = 8,
        num_heads: int = 12,
        num_layers: int | None = None,
    ) -> None:
        if hidden_size % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide hidden_size={hidden_size}")
        super().__init__(sources, hidden_size, num_prefix_tokens)
        self.num_heads = num_heads
        self.num_layers = num_layers
        projected_size = hidden_size * (num_layers or 1)
        self.key = nn.Linear(hidden_size, projected_size)
        self.value = nn.Linear(hidden_size, projected_size)
        self.draw_tokens()

    def forward(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values, each (I, H, P, X), or (Z, I, H, P, X) with `num_layers`; see `Injection.forward`.

        Features may have any float dtype; the result has the generator's.
        """
        tokens_IPW = self.tokens(features, use)
        return self._split(self.key(tokens_IPW)), self._split(self.value(tokens_IPW))

    def _split(self, projected: Tensor) -> Tensor:
        batch_size, num_tokens, _ = projected.shape
        if self.num_layers is None:
            return projected.view(batch_size, num_tokens, self.num_heads, -1).transpose(1, 2)
        per_layer = projected.view(batch_size, num_tokens, self.num_layers, self.num_heads, -1)
        return per_layer.permute(2, 0, 3, 1, 4)


def pooled_projection(feature_dim: int, hidden_size: int, out_size: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(feature_dim, hidden_size), nn.GELU(), nn.Linear(hidden_size, out_size))


def in_use(of_each_source: Sequence[T], use: Sequence[bool] | None) -> list[T]:
    """What belongs to the sources that take part; `ValueError` where none does or the numbers differ."""
    if use is None:
        return list(of_each_source)
    if len(use) != len(of_each_source) or not any(use):
        raise ValueError(f"use = {list(use)} of {len(of_each_source)} art sources: give a truth value each, one true")
    return [one for one, is_used in zip(of_each_source, use, strict=True) if is_used]
