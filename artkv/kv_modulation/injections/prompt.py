"""`prompt`: tokens made of the art features among the visual tokens that OPT reads.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from artkv.config import KVModulationConfig
from artkv.kv_modulation.generator import ArtTokens
from artkv.kv_modulation.injection import Injection, ModelSizes
from artkv.kv_modulation.modulation import Modulation
from artkv.kv_modulation.sources import ArtSource


@dataclass(frozen=True)
class ArtPrompt(Modulation):
    """`[visual tokens][art tokens][text]`: the Q-Former is left as it is, and so are the visual tokens' positions.

    tokens_IPD: in OPT's width.
    """

    tokens_IPD: Tensor

    def visual_tokens(self, visual_IKD: Tensor) -> Tensor:
        """(I, K + P, D)."""
        return torch.cat([visual_IKD, self.tokens_IPD.to(visual_IKD.dtype)], dim=1)


class _PromptTokens(ArtTokens):
    """Art tokens, and the layer that brings them to OPT's width."""

    def __init__(self, sources: Sequence[ArtSource], sizes: ModelSizes, num_prefix_tokens: int) -> None:
        super().__init__(sources, sizes.width, num_prefix_tokens)
        self.project = nn.Linear(sizes.width, sizes.language_width)
        self.draw_tokens()

    def forward(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> Tensor:
        """(I, P, D)."""
        projected: Tensor = self.project(self.tokens(features, use))
        return projected


class Prompt(Injection):
    """Art tokens as `concat` makes them, projected into OPT's width."""

    def __init__(self, settings: KVModulationConfig, sources: Sequence[ArtSource], sizes: ModelSizes) -> None:
        super().__init__(settings, sources, sizes)
        self.prompt_generator = _PromptTokens(sources, sizes, settings.num_prefix_tokens)

    def forward(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> ArtPrompt:
        """The tokens of each painting; see `Injection.forward`."""
        return ArtPrompt(self.prompt_generator(features, use))

    @classmethod
    def extra_visual_tokens(cls, settings: KVModulationConfig, token_counts: Sequence[int | None]) -> int:
        """P of all sources together."""
        return sum(settings.num_prefix_tokens if count is None else count for count in token_counts)
