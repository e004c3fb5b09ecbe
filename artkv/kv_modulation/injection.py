"""What all injections are: trained networks that make a modulation of art features.

Letters in tensor names are explained in `artkv.batch`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from artkv.config import KVModulationConfig
from artkv.kv_modulation.modulation import Modulation
from artkv.kv_modulation.sources import ArtSource

# Whether what the art encoders say is injected: of all of them, or of each.
Use: TypeAlias = bool | Sequence[bool]

# The trainable parameter that scales what is injected, if there is one.
GATE = "kv_prefix_gate"


@dataclass(frozen=True)
class ModelSizes:
    """Of the BLIP-2 that is injected into.

    width: W. heads: H. layers: Z, those with cross-attention. language_width: D.
    """

    width: int
    heads: int
    layers: int
    language_width: int


class Injection(nn.Module, ABC):
    """A way of injecting art features into BLIP-2; `artkv.kv_modulation.injections` has them by name.

    Its parameters' names are those of checkpoints, so they stay. None of them may begin with a name of BLIP-2's
    parts (`qformer.`, `language_model.`). What it computes is in the `Modulation` that it returns, never on a module.

    has_prefix_tokens: whether it puts keys and values of its own into the cross-attention.
    shares_attention: whether these take attention from the image, so that one can ask how much of it lies on them.
    kv_prefix_gate: g, zeros at the start: (1,), (Z,) or (Z, H) by `gate_per`; None without `gate: zero`.
    """

    has_prefix_tokens: ClassVar[bool] = False
    shares_attention: ClassVar[bool] = False
    kv_prefix_gate: nn.Parameter | None

    def __init__(self, settings: KVModulationConfig, sources: Sequence[ArtSource], sizes: ModelSizes) -> None:
        super().__init__()
        self.settings = settings
        self.sources = tuple(sources)
        gate = None
        if settings.gate == "zero":
            # Shape (1,): DeepSpeed's broadcast fails on a parameter without dimensions.
            shapes = {"model": (1,), "layer": (sizes.layers,), "head": (sizes.layers, sizes.heads)}
            gate = nn.Parameter(torch.zeros(shapes[settings.gate_per]))
        self.register_parameter(GATE, gate)

    @abstractmethod
    def forward(self, features: Sequence[Tensor], use: Sequence[bool] | None = None) -> Modulation:
        """What is injected for each painting.

        features: of each source, (I, F) or (I, M, F), of any float dtype.
        use: for each source whether it takes part, one at least; None: all do. One that does not is as if it were not
            there: its tokens, or its contribution, are left out.
        """

    def used(self, use: Use) -> list[bool]:
        """For each source whether it takes part; `ValueError` where `use` has another number of them."""
        if isinstance(use, bool):
            return [use] * len(self.sources)
        if len(use) != len(self.sources):
            names = [source.name for source in self.sources]
            raise ValueError(f"use_prefix = {list(use)}: the art encoders are {names}; give a truth value for each")
        return list(use)

    def extra_tokens(self, use: Use) -> int:
        """`extra_visual_tokens` of the sources in use."""
        used = zip(self.sources, self.used(use), strict=True)
        return self.extra_visual_tokens(self.settings, [source.num_tokens for source, is_used in used if is_used])

    @classmethod
    def extra_visual_tokens(cls, settings: KVModulationConfig, token_counts: Sequence[int | None]) -> int:
        """How many tokens OPT reads of a painting beside the K of its query tokens.

        token_counts: `ArtSource.num_tokens` of each source that takes part.
        """
        return 0
