"""What every backend gives: BLIP-2's parts under one contract.

Letters in tensor names: I paintings, N image tokens, Q query tokens, V the ViT's width, W the
Q-Former's width, D the language model's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from artkv.frozen.host_blocks import Gather
from artkv.frozen.streaming import StreamedBlocks
from artkv.kv_modulation import KVPrefix


@dataclass(frozen=True)
class ImageSettings:
    """How the ViT wants its pictures: side in pixels, mean and std of the three channels."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Blip2Backbone(Protocol):
    """BLIP-2 in parts, with prefixed cross-attention installed and every module in eval mode.

    Parameter names of all backends are transformers' (`Blip2ForConditionalGeneration`'s), so an adapter
    or a hash made with one fits the other.
    """

    tokenizer: Any
    image_settings: ImageSettings
    dtype: torch.dtype
    device: torch.device
    qformer_width: int
    num_qformer_heads: int
    num_cross_attention_layers: int
    num_query_tokens: int
    language_model_width: int
    most_positions: int  # visual and text tokens together
    num_parameters: int
    streamed: Mapping[str, StreamedBlocks]  # `opt` and `vit`, where their blocks stream
    language_model: Any  # transformers' OPTForCausalLM under SDPA; its last block after `read_answer_columns`
    qformer: nn.Module

    def encode_images(self, pixels_I3SS: Tensor) -> Tensor:
        """The ViT's tokens after its last LayerNorm, (I, N, V); loads the ViT first where it was left out."""

    def load_vit(self, gather: Gather) -> None:
        """Gives a ViT that was left out its weights, if it has none yet; all ranks call it alike.

        gather: that of `World`, so that the ranks of a host share one copy of what streams.
        """

    def vit_settings(self) -> dict[str, Any]:
        """What the ViT's output depends on beside its weights and pixels, under the same names in all backends."""

    def query_images(self, image_features_INV: Tensor, prefix: KVPrefix | None) -> Tensor:
        """The Q-Former's output, (I, Q, W)."""

    def project_queries(self, query_output_IQW: Tensor) -> Tensor:
        """The visual tokens that the language model reads, (I, Q, D)."""

    def train_cross_attention(self) -> dict[str, nn.Parameter]:
        """Query, key, value, output and LayerNorm of each cross-attention block, by name.

        They come back as fp32 parameters with gradients on, read anew from the file, so that a master
        copy starts from what the file holds and not from its rounding to bfloat16.
        """

    def qformer_parameter_name(self, name: str) -> str:
        """The backend-neutral name of the parameter that `qformer` calls `name`."""

    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        """Every parameter by its backend-neutral name; tied ones once.

        LAVIS keeps the query's and the value's part of a ViT block's `qkv.bias` apart: `q_bias` and `v_bias`.
        """

    def weight_digests(self) -> dict[str, str]:
        """Digest of each tensor as it was loaded, by backend-neutral name, and of the settings that give them meaning.

        Settings are tokenizer, image normalisation, heads and activations, under names with `settings.` in front.
        """
