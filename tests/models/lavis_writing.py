"""Files in LAVIS's formats, made of a stock transformers model by rules of this file alone."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from artkv.config import ModelConfig


def lavis_sized_blip2(vocab_size: int) -> Blip2ForConditionalGeneration:
    """A stock BLIP-2 with LAVIS's head widths, 88 and 64, and biases that are not zero where LAVIS has them."""
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=176, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=128, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, encoder_hidden_size=176,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=vocab_size, hidden_size=40, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, word_embed_proj_dim=40, pad_token_id=1, bos_token_id=2, eos_token_id=2,
        ).to_dict(),
        num_query_tokens=6,
        image_token_index=4,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.dim() == 2:
                parameter.mul_(3.0)
            if name.endswith("qkv.bias"):
                parameter[176:352] = 0.0
        model.query_tokens.normal_(std=0.5)
        model.vision_model.embeddings.position_embedding.normal_(std=0.5)
        model.vision_model.embeddings.class_embedding.normal_(std=0.5)
    return model


def lavis_state(model: Blip2ForConditionalGeneration) -> dict[str, Tensor]:
    """The whole model's tensors by the names of LAVIS's `Blip2OPT`."""
    state = {}
    for name, value in model.state_dict().items():
        tensor = value.detach().clone()
        if name.startswith("vision_model.post_layernorm"):
            new = name.replace("vision_model.post_layernorm", "ln_vision")
        elif name.startswith("vision_model."):
            new = name.replace("vision_model.embeddings.class_embedding", "cls_token")
            new = new.replace("vision_model.embeddings.position_embedding", "pos_embed")
            new = new.replace("vision_model.embeddings.patch_embedding", "patch_embed.proj")
            new = new.replace("vision_model.encoder.layers", "blocks").replace("layer_norm", "norm")
            new = "visual_encoder." + new.replace("self_attn", "attn").replace("attn.projection", "attn.proj")
        elif name.startswith("qformer.layernorm"):
            new = name.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")
        elif name.startswith("qformer."):
            new = name.replace("qformer.", "Qformer.bert.", 1).replace("attention.attention.", "attention.self.")
        else:
            new = name.replace("language_projection", "opt_proj").replace("language_model", "opt_model")
        if new.endswith("attn.qkv.bias"):
            query, _, value_bias = tensor.chunk(3)
            state[new.replace("qkv.bias", "q_bias")] = query.clone()
            state[new.replace("qkv.bias", "v_bias")] = value_bias.clone()
        else:
            state[new] = tensor
    return state


@dataclass(frozen=True)
class LavisFolder:
    """The same model in each format: `folder` of transformers; `pth` and `vit`, or `finetuned` alone, with `opt`."""

    model: Blip2ForConditionalGeneration
    folder: Path
    pth: Path
    vit: Path
    finetuned: Path
    opt: Path

    @property
    def pretrained_config(self) -> ModelConfig:
        """As LAVIS publishes its pretrained models."""
        return ModelConfig(blip2=str(self.pth), vit=self.vit, opt=str(self.opt))

    @property
    def finetuned_config(self) -> ModelConfig:
        """As LAVIS publishes models with a finetuned ViT."""
        return ModelConfig(blip2=str(self.finetuned), opt=str(self.opt))


def write_lavis_folder(root: Path, tokenizer: PreTrainedTokenizerFast, spare_tokens: int = 0) -> LavisFolder:
    """Writes `LavisFolder`, with the superfluous tensors that LAVIS's files hold.

    spare_tokens: rows of OPT's embedding beyond the tokenizer's tokens, as the published OPT has.
    """
    model = lavis_sized_blip2(len(tokenizer) + spare_tokens)
    files = LavisFolder(
        model, root / "folder", root / "blip2.pth", root / "eva_vit_g.pth", root / "finetuned.pth", root / "opt"
    )
    model.save_pretrained(files.folder)
    tokenizer.save_pretrained(files.folder)
    BlipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(files.folder)

    state = lavis_state(model)
    vit = {name.removeprefix("visual_encoder."): t for name, t in state.items() if name.startswith("visual_encoder.")}
    # What EVA has beside what LAVIS uses.
    vit |= {"norm.weight": torch.ones(176), "norm.bias": torch.zeros(176), "head.weight": torch.ones(3, 176)}
    vit |= {"fc_norm.weight": torch.ones(176), "blocks.39.norm1.weight": torch.ones(176)}
    torch.save(vit, files.vit)

    superfluous = {
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(5, 128),
        "Qformer.cls.predictions.bias": torch.zeros(5),
        "Qformer.bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(96, 128),
        "Qformer.bert.encoder.layer.0.output.LayerNorm.weight": torch.zeros(128),
    }
    trained = {n: t for n, t in state.items() if not n.startswith(("visual_encoder.", "opt_model."))} | superfluous
    # Tied to the embedding, it is no parameter of its own, so LAVIS does not find it frozen and keeps it.
    trained["opt_model.lm_head.weight"] = state["opt_model.lm_head.weight"]
    torch.save({"model": trained, "optimizer": {"state": {}}, "epoch": 3}, files.pth)
    finetuned = {name: tensor for name, tensor in state.items() if name.startswith("visual_encoder.")} | trained
    torch.save({"model": finetuned}, files.finetuned)

    # As facebook/opt-2.7b is published: pytorch_model.bin, without the whole model's `model.` in front.
    files.opt.mkdir()
    text_config: OPTConfig = model.config.text_config
    text_config.save_pretrained(files.opt)
    tokenizer.save_pretrained(files.opt)
    opt = {n.removeprefix("opt_model.model."): t for n, t in state.items() if n.startswith("opt_model.model.")}
    torch.save(opt, files.opt / "pytorch_model.bin")
    return files


def write_tokenizer_as_published(folder: Path) -> None:
    """Puts the files that facebook/opt-2.7b has in the place of `tokenizer.json`, without `<image>`."""
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = {"<unused>" if token == "<image>" else token: number for token, number in whole["vocab"].items()}
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in whole["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    settings = {"tokenizer_class": "GPT2Tokenizer", "errors": "replace", "add_bos_token": True, "pad_token": "<pad>"}
    settings |= dict.fromkeys(("unk_token", "bos_token", "eos_token"), "</s>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
