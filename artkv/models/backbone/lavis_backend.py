"""BLIP-2 on LAVIS's own modules: its EVA ViT and its Q-Former, and transformers' OPT.

`lavis.models.blip2_models.Blip2OPT` itself is not used: its constructor downloads three models and casts them, and
its OPT cannot generate with current transformers. What it is made of is built here from the config.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from artkv.config import FrozenConfig
from artkv.errors import UserError
from artkv.kv_modulation import STOCK, Modulation, PrefixedCrossAttention
from artkv.models.backbone.blip2_backbone import RESIDENT, Blip2Backbone, Blip2Modules, BlockStack
from artkv.models.backbone.lavis_compatibility import import_lavis, shapes_only
from artkv.models.files.blip2_files import Blip2Files
from artkv.models.files.lavis_names import LavisNamed, from_lavis


class LavisBlip2(nn.Module):
    """LAVIS's parts under the names that they have in its `Blip2OPT`, so its checkpoints' keys are its keys.

    `ln_vision` is a plain LayerNorm; LAVIS's casts its input to fp32 and then fails on weights in bf16. Where
    weights come from decides its eps, not the backend: `Blip2Files.ln_vision_eps`. So the backends agree.

    Raises:
        UserError: if LAVIS is not installed, or has no such ViT.
    """

    def __init__(self, config: Any, ln_vision_eps: float) -> None:
        super().__init__()
        lavis = import_lavis()
        vision, bert = config.vision_config, config.qformer_config
        if vision.hidden_act != "gelu":
            raise UserError(
                f"model.backend = lavis: its ViT computes gelu, and the model's is {vision.hidden_act}; "
                "use model.backend: transformers"
            )
        width = vision.hidden_size
        self.visual_encoder = lavis.eva_vit.VisionTransformer(
            img_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=width,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_ratio=(vision.intermediate_size + 0.5) / width,  # LAVIS multiplies and cuts: 0.5 against rounding
            qkv_bias=vision.qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=vision.layer_norm_eps),
        )
        self.ln_vision = nn.LayerNorm(width, eps=ln_vision_eps)
        # As in LAVIS's `init_Qformer`; of the vocabulary and the positions, which only its text branch has, one each.
        bert_config = lavis.qformer.BertConfig(
            vocab_size=1,
            max_position_embeddings=1,
            hidden_size=bert.hidden_size,
            num_hidden_layers=bert.num_hidden_layers,
            num_attention_heads=bert.num_attention_heads,
            intermediate_size=bert.intermediate_size,
            hidden_act=bert.hidden_act,
            layer_norm_eps=bert.layer_norm_eps,
        )
        bert_config.encoder_width = bert.encoder_hidden_size
        bert_config.add_cross_attention = True
        bert_config.cross_attention_freq = bert.cross_attention_frequency
        bert_config.query_length = config.num_query_tokens
        qformer = lavis.QFormer(bert_config)
        # As `Blip2OPT` does: no text passes through its Q-Former.
        qformer.embeddings.word_embeddings = qformer.embeddings.position_embeddings = None
        for layer in qformer.encoder.layer:
            layer.intermediate = layer.output = None
        # Cut to the length of the text, 0.
        qformer.embeddings.register_buffer(
            "position_ids", torch.zeros(1, 0, dtype=torch.long, device="cpu"), persistent=False
        )
        self.Qformer = nn.ModuleDict({"bert": qformer})
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, bert.hidden_size))
        self.opt_proj = nn.Linear(bert.hidden_size, config.text_config.hidden_size)
        self.opt_model: Any = AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=False)


class LavisCrossAttention(PrefixedCrossAttention):
    """In the place of LAVIS's `BertSelfAttention`, which takes its arguments by position."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        head_mask: None,
        encoder_hidden_states: list[Any],
        *_: Any,
    ) -> tuple[Tensor, None]:
        """The attention output (I, K, W), and no keys and values to keep.

        encoder_hidden_states: image features (I, N, V) and `Modulation` or None; LAVIS hands a list down untouched.
        The mask beside it is all ones, and left out.
        """
        image_features_INV, modulation = encoder_hidden_states
        return super().forward(hidden_states, None, image_features_INV, None, modulation)


class LavisBackbone(Blip2Backbone):
    """`Blip2Backbone` over LAVIS's modules. See `open_lavis_backbone`."""

    def __init__(
        self,
        model: LavisBlip2,
        files: Blip2Files,
        own: LavisNamed,
        dtype: torch.dtype,
        device: torch.device,
        frozen: FrozenConfig,
    ) -> None:
        super().__init__(_modules(model), files, own, dtype, device, frozen)
        self._model = model

    def _image_features(self, pixels_I3EE: Tensor) -> Tensor:
        return self._model.ln_vision(self._model.visual_encoder(pixels_I3EE))

    def query_images(self, image_features_INV: Tensor, modulation: Modulation | None) -> Tensor:
        query_IKW = self._model.query_tokens.expand(image_features_INV.shape[0], -1, -1)
        return self.qformer(
            query_embeds=(modulation or STOCK).queries(query_IKW),
            encoder_hidden_states=[image_features_INV, modulation],
            return_dict=True,
        ).last_hidden_state

    def project_queries(self, query_output_IKW: Tensor) -> Tensor:
        return self._model.opt_proj(query_output_IKW)


def _modules(model: LavisBlip2) -> Blip2Modules:
    qformer: Any = model.Qformer["bert"]
    return Blip2Modules(
        root=model,
        language_model=model.opt_model,
        qformer=qformer,
        qformer_prefix="Qformer.bert.",
        stacks=[
            BlockStack("opt", "opt_model.model.decoder.layers.", model.opt_model.model.decoder.layers),
            BlockStack("vit", "visual_encoder.blocks.", model.visual_encoder.blocks),
        ],
        cross_attention={
            f"Qformer.bert.encoder.layer.{index}.crossattention": layer.crossattention
            for index, layer in enumerate(qformer.encoder.layer)
            if layer.has_cross_attention
        },
        attention_attribute="self",
        prefixed_attention=LavisCrossAttention,
        vit_prefixes=("visual_encoder.", "ln_vision."),
        neutral_name=_neutral_name,
    )


def _neutral_name(name: str) -> str:
    neutral = from_lavis(name)
    assert neutral is not None, name
    if name.endswith((".q_bias", ".v_bias")):  # two parameters of one tensor
        return f"{neutral.removesuffix('qkv.bias')}{name.rsplit('.', 1)[1]}"
    return neutral


def open_lavis_backbone(
    files: Blip2Files, dtype: torch.dtype, device: torch.device, frozen: FrozenConfig = RESIDENT
) -> LavisBackbone:
    """BLIP-2 on LAVIS's modules, to be loaded.

    Raises:
        UserError: if LAVIS is not installed, or its modules cannot hold these weights.
    """
    with shapes_only():
        model = LavisBlip2(files.config, files.ln_vision_eps)
    own = LavisNamed(files.source)
    for name in own.names():
        if name.endswith(".q_bias"):
            own.tensor(name)  # finds a key bias, which LAVIS's ViT has not
    return LavisBackbone(model, files, own, dtype, device, frozen)
