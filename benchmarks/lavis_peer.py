"""LAVIS's `Blip2OPT` with its real `forward`, its parts built from configs: its constructor downloads them."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from random_world import Size, blip2_config
from torch import nn
from transformers import BertConfig, OPTForCausalLM

from artkv.models.backbone import lavis_compatibility as compatibility


class _QFormer(nn.Module):
    """What `Blip2OPT` calls `Qformer`, of which it uses `bert`."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert


def lavis_blip2_opt(size: Size, tokenizer: Any, dtype: torch.dtype) -> Any:
    """A `Blip2OPT` with random weights, in which the Q-Former's cross-attention trains and nothing else.

    Its own default trains the whole Q-Former; the same trainables as everybody's are less work for it. transformers'
    OPT stands in for LAVIS's copy of it: same weights, same loss.
    """
    modules = compatibility.import_lavis()
    blip2_opt = _import_blip2_opt()
    model = blip2_opt.Blip2OPT.__new__(blip2_opt.Blip2OPT)
    nn.Module.__init__(model)
    model.visual_encoder = modules.eva_vit.VisionTransformer(
        img_size=size.image_size, patch_size=14, use_mean_pooling=False, embed_dim=size.vit_width,
        depth=size.vit_layers, num_heads=size.vit_heads, mlp_ratio=size.vit_mlp / size.vit_width, qkv_bias=True,
    )  # fmt: skip
    bert_config = BertConfig(
        hidden_size=size.qformer_width, num_hidden_layers=size.qformer_layers, num_attention_heads=size.qformer_heads,
        intermediate_size=4 * size.qformer_width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    bert_config.encoder_width = size.vit_width
    bert_config.add_cross_attention = True
    bert_config.cross_attention_freq = 2
    bert_config.query_length = size.num_queries
    bert_config._attn_implementation = "eager"
    model.Qformer = _QFormer(modules.QFormer(bert_config, add_pooling_layer=False))
    model.Qformer.bert.embeddings.word_embeddings = None
    model.Qformer.bert.embeddings.position_embeddings = None
    for layer in model.Qformer.bert.encoder.layer:
        layer.output = layer.intermediate = None
    model.query_tokens = nn.Parameter(torch.randn(1, size.num_queries, size.qformer_width) * 0.02)
    model.opt_model = OPTForCausalLM(blip2_config(size).text_config)
    model.opt_proj = nn.Linear(size.qformer_width, size.opt_width)
    model.to(dtype)
    model.ln_vision = blip2_opt.Blip2Base.init_vision_encoder.__globals__["LayerNorm"](
        size.vit_width
    )  # computes in fp32
    model.opt_tokenizer, model.prompt, model.prompt_length, model.max_txt_len = tokenizer, "", 0, 64
    model.eval().requires_grad_(False)
    for layer in model.Qformer.bert.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.requires_grad_(True)
    return model


def _import_blip2_opt() -> Any:
    """`lavis.models.blip2_models.blip2_opt`, as artkv imports LAVIS's other modules."""
    spec = importlib.util.find_spec("lavis")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(next(iter(spec.submodule_search_locations)))
    with compatibility._empty_packages(package), compatibility._older_transformers():
        # LAVIS's registry looks for it in the package, whose own `__init__` would put it there.
        package_module: Any = importlib.import_module("lavis.models")
        package_module.BaseModel = importlib.import_module("lavis.models.base_model").BaseModel
        return importlib.import_module("lavis.models.blip2_models.blip2_opt")
