"""BLIP-2 on transformers' own modules."""

from typing import Any

import torch
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from artkv.config import FrozenConfig
from artkv.kv_modulation import STOCK, Modulation, PrefixedCrossAttention
from artkv.models.backbone.blip2_backbone import RESIDENT, Blip2Backbone, Blip2Modules, BlockStack
from artkv.models.files.blip2_files import Blip2Files, stock_blip2


class TransformersBackbone(Blip2Backbone):
    """`Blip2Backbone` over transformers' own modules. See `open_transformers_backbone`."""

    def __init__(
        self,
        model: Blip2ForConditionalGeneration,
        files: Blip2Files,
        dtype: torch.dtype,
        device: torch.device,
        frozen: FrozenConfig,
    ) -> None:
        super().__init__(_modules(model), files, files.source, dtype, device, frozen)
        self._model = model

    def _image_features(self, pixels_I3EE: Tensor) -> Tensor:
        return self._model.vision_model(pixels_I3EE).last_hidden_state

    def query_images(self, image_features_INV: Tensor, modulation: Modulation | None) -> Tensor:
        query_IKW = self._model.query_tokens.expand(image_features_INV.shape[0], -1, -1)
        # transformers hands unknown keyword arguments down to each attention.
        return self._model.qformer(
            query_embeds=(modulation or STOCK).queries(query_IKW),
            encoder_hidden_states=image_features_INV,
            modulation=modulation,
        ).last_hidden_state

    def project_queries(self, query_output_IKW: Tensor) -> Tensor:
        return self._model.language_projection(query_output_IKW)


def _modules(model: Blip2ForConditionalGeneration) -> Blip2Modules:
    opt_layers: Any = model.language_model.model.decoder.layers
    return Blip2Modules(
        root=model,
        language_model=model.language_model,
        qformer=model.qformer,
        qformer_prefix="qformer.",
        stacks=[
            BlockStack("opt", "language_model.model.decoder.layers.", opt_layers),
            BlockStack("vit", "vision_model.encoder.layers.", list(model.vision_model.encoder.layers)),
        ],
        cross_attention={
            f"qformer.encoder.layer.{index}.crossattention": layer.crossattention
            for index, layer in enumerate(model.qformer.encoder.layer)
            if layer.has_cross_attention
        },
        attention_attribute="attention",
        prefixed_attention=PrefixedCrossAttention,
        vit_prefixes=("vision_model.",),
        neutral_name=lambda name: name,
    )


def open_transformers_backbone(
    files: Blip2Files, dtype: torch.dtype, device: torch.device, frozen: FrozenConfig = RESIDENT
) -> TransformersBackbone:
    """BLIP-2 on transformers' modules, to be loaded."""
    model = stock_blip2(files.config)
    model.vision_model.post_layernorm.eps = files.ln_vision_eps
    return TransformersBackbone(model, files, dtype, device, frozen)
