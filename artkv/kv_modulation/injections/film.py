"""`film`: scales and shifts made of the art features (FiLM, arXiv 1709.07871).

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from artkv.config import KVModulationConfig
from artkv.kv_modulation.generator import in_use, pooled_projection
from artkv.kv_modulation.injection import Injection, ModelSizes
from artkv.kv_modulation.modulation import (
    STOCK,
    AttentionInputs,
    LayerAttention,
    Modulation,
    attend_to_image,
    opened_gate,
)
from artkv.kv_modulation.sources import ArtSource


@dataclass(frozen=True)
class ModulatedKeysValues(Modulation):
    """`K_img (1 + t s_K)` and `V_img (1 + t s_V) + t b_V` in each cross-attention layer.

    t is tanh(g), or 1 without a gate. Keys have no shift: one that is the same for all keys adds the same to all scores
    of a query, which softmax takes away again.

    changes: s_K, s_V and b_V, (I, Z, 3, H, X), or (I, 1, 3, H, X) for all layers.
    gate: see `opened_gate`, or None.
    """

    changes: Tensor
    gate: Tensor | None = None

    def attend(self, inputs: AttentionInputs, layer: int) -> Tensor:
        """Attention to the image by its changed keys and values."""
        return attend_to_image(self._modulated(inputs, layer))

    def record(self, inputs: AttentionInputs, layer: int) -> LayerAttention:
        """The weights on the image sum to 1. sizes: key_scale, value_scale, value_shift, the root mean square each."""
        names = ("key_scale", "value_scale", "value_shift")
        changes = self._changes(layer, torch.float32)
        sizes = {name: _size(change)[..., 0] for name, change in zip(names, changes, strict=True)}
        return replace(STOCK.record(self._modulated(inputs, layer), layer), sizes=sizes)

    def _modulated(self, inputs: AttentionInputs, layer: int) -> AttentionInputs:
        key_scale, value_scale, value_shift = self._changes(layer, inputs.key_IHNX.dtype)
        key_IHNX = inputs.key_IHNX * (1 + key_scale)
        return replace(inputs, key_IHNX=key_IHNX, value_IHNX=inputs.value_IHNX * (1 + value_scale) + value_shift)

    def _changes(self, layer: int, dtype: torch.dtype) -> list[Tensor]:
        """Each (I, H, 1, X)."""
        of_layer = self.changes[:, layer if self.changes.shape[1] > 1 else 0].to(dtype)
        changes = [of_layer[:, number, :, None] for number in range(3)]
        return changes if self.gate is None else [opened_gate(self.gate, layer).to(dtype) * one for one in changes]


@dataclass(frozen=True)
class ModulatedQueries(Modulation):
    """The query tokens as `q (1 + t s) + t b` before the Q-Former; t is tanh(g), or 1 without a gate.

    changes: s and b, (I, 2, W). gate: (1,), or None.
    """

    changes: Tensor
    gate: Tensor | None = None

    def queries(self, query_IKW: Tensor) -> Tensor:
        """Each painting's own query tokens."""
        scale, shift = self._changes(query_IKW.dtype)
        return query_IKW * (1 + scale) + shift

    def record(self, inputs: AttentionInputs, layer: int) -> LayerAttention:
        """The weights on the image sum to 1. sizes: query_scale, query_shift, the same for all layers and heads."""
        pairs = zip(("query_scale", "query_shift"), self._changes(torch.float32), strict=True)
        sizes = {name: _size(change).expand(-1, inputs.query_IHKX.shape[1]) for name, change in pairs}
        return replace(STOCK.record(inputs, layer), sizes=sizes)

    def _changes(self, dtype: torch.dtype) -> list[Tensor]:
        """Each (I, 1, W)."""
        changes = [self.changes[:, number, None].to(dtype) for number in range(2)]
        return changes if self.gate is None else [opened_gate(self.gate, 0).to(dtype) * one for one in changes]


class Film(Injection):
    """An MLP for each source, of its features or of their mean over tokens; what they say is added up.

    The last layer starts at zero, so that the first step is stock BLIP-2. With `gate: zero` the gate sees to that, and
    the layer is drawn: were both zero, neither would ever get a gradient.
    """

    def __init__(self, settings: KVModulationConfig, sources: Sequence[ArtSource], sizes: ModelSizes) -> None:
        super().__init__(settings, sources, sizes)
        self._of_queries = settings.film == "queries"
        self._heads = sizes.heads
        self._layers = 1 if settings.shared_across_layers else sizes.layers
        out_size = sizes.width * (2 if self._of_queries else 3 * self._layers)
        self.film_generator = nn.ModuleDict(
            {source.name: pooled_projection(source.feature_dim, sizes.width, out_size) for source in sources}
        )
        if self.kv_prefix_gate is None:
            for mlp in self.film_generator.values():
                last: nn.Linear = mlp[-1]  # type: ignore[index]
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(
        self, features: Sequence[Tensor], use: Sequence[bool] | None = None
    ) -> ModulatedKeysValues | ModulatedQueries:
        """The changes of each painting; see `Injection.forward`."""
        dtype = next(self.film_generator.parameters()).dtype
        used = zip(in_use(list(self.film_generator.values()), use), in_use(features, use), strict=True)
        of_each = [mlp(_pooled(one.to(dtype))) for mlp, one in used]
        total = torch.stack(of_each).sum(dim=0)
        if self._of_queries:
            return ModulatedQueries(total.unflatten(1, (2, -1)), self.kv_prefix_gate)
        return ModulatedKeysValues(total.unflatten(1, (self._layers, 3, self._heads, -1)), self.kv_prefix_gate)


def _pooled(features: Tensor) -> Tensor:
    """(I, F)."""
    return features if features.dim() == 2 else features.mean(dim=1)


def _size(change: Tensor) -> Tensor:
    """The root mean square over the last dimension."""
    return change.float().square().mean(dim=-1).sqrt()
