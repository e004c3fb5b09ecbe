"""What LAVIS itself computes, with the library versions that it pins: the reference that both backends are held to.

Run once, in an environment of its own without artkv: Python 3.10, transformers 4.26.1, timm 0.4.12, NumPy 1.26.4 and
torch 2.14.1, which LAVIS does not pin.

    python3.10 -m venv lavis_pins
    lavis_pins/bin/pip install salesforce-lavis==1.0.2 'numpy<2'
    OMP_NUM_THREADS=1 lavis_pins/bin/python tests/models/lavis_reference.py tests/models/lavis_reference.npz

Weights and inputs are drawn by name, here and in the test alike, so that the file holds results alone.
"""

import sys
import zlib

import numpy as np

VIT = {"width": 176, "mlp": 96, "blocks": 2, "heads": 2, "patch": 14, "image": 28}  # LAVIS: heads of 88
QFORMER = {"width": 128, "mlp": 96, "layers": 4, "heads": 2, "queries": 6}  # LAVIS: heads of 64
OPT = {"vocab_size": 320, "hidden_size": 40, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PREFIX_TOKENS = 3
# Token ids of a text for each picture, BOS first; and a prompt to go on from.
TEXTS = [[2, 17, 230, 45, 8], [2, 99, 203, 12, 300, 41, 7]]
PROMPT = [2, 150, 33, 71]
NEW_TOKENS = 8


def drawn(name, shape):
    """float64 values that depend on name and shape alone, whatever the version of NumPy."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "Norm.weight", "ln_vision.weight")):
        return 1 + 0.1 * values
    if name.startswith("visual_encoder."):
        return 0.03 * values  # small, so that it shows which eps ln_vision has
    if len(shape) == 2 and "embed" not in name:
        return 1.5 * values / np.sqrt(shape[1])
    return (0.1 if len(shape) == 1 else 0.5) * values


def sampled(gradient):
    """Norm and 32 entries of a gradient, spread over it."""
    flat = gradient.ravel()
    return np.concatenate([[np.linalg.norm(flat)], flat[np.linspace(0, flat.size - 1, 32).astype(int)]])


class _Ids(dict):
    """A tokenizer's output."""

    __getattr__ = dict.__getitem__

    def to(self, device):
        return self


class _WrittenIds:
    """Stands for OPT's tokenizer: a text is its token ids, written out."""

    pad_token_id = 1

    def __call__(self, texts, add_special_tokens=True, return_tensors=None, **_):
        import torch

        if not add_special_tokens:
            return _Ids(input_ids=[999])  # the newline that ends an answer: here none does
        rows = [[int(word) for word in text.split()] for text in ([texts] if isinstance(texts, str) else texts)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_token_id] * (longest - len(row)) for row in rows], dtype=torch.long)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=torch.long)
        return _Ids(input_ids=ids, attention_mask=mask)

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(map(str, row.tolist())) for row in rows]


def lavis_model():
    """LAVIS's `Blip2OPT` in eval mode, with drawn weights; the downloads in its constructor give small models."""
    from functools import partial
    from types import SimpleNamespace

    import torch
    from lavis.models.blip2_models import blip2, blip2_opt
    from lavis.models.blip2_models.modeling_opt import OPTForCausalLM
    from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel
    from lavis.models.eva_vit import VisionTransformer
    from transformers import OPTConfig

    def vision_encoder(*_):
        encoder = VisionTransformer(
            img_size=VIT["image"], patch_size=VIT["patch"], use_mean_pooling=False, embed_dim=VIT["width"],
            depth=VIT["blocks"], num_heads=VIT["heads"], mlp_ratio=(VIT["mlp"] + 0.5) / VIT["width"], qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        return encoder, blip2.LayerNorm(VIT["width"])

    bert = BertConfig(
        vocab_size=50, hidden_size=QFORMER["width"], intermediate_size=QFORMER["mlp"],
        num_hidden_layers=QFORMER["layers"], num_attention_heads=QFORMER["heads"],
    )  # fmt: skip
    opt = OPTConfig(
        max_position_embeddings=128, word_embed_proj_dim=OPT["hidden_size"], pad_token_id=1, bos_token_id=2,
        eos_token_id=2, **OPT,
    )  # fmt: skip
    blip2.BertConfig = SimpleNamespace(from_pretrained=lambda _: bert)
    blip2.BertLMHeadModel = SimpleNamespace(from_pretrained=lambda _, config: BertLMHeadModel(config))
    blip2_opt.AutoTokenizer = SimpleNamespace(from_pretrained=lambda *_, **__: _WrittenIds())
    blip2_opt.OPTForCausalLM = SimpleNamespace(from_pretrained=lambda *_, **__: OPTForCausalLM(opt))
    blip2_opt.Blip2OPT.init_tokenizer = classmethod(lambda _: None)
    blip2_opt.Blip2OPT.init_vision_encoder = classmethod(lambda _, *arguments: vision_encoder(*arguments))
    model = blip2_opt.Blip2OPT(num_query_token=QFORMER["queries"], prompt="2").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(drawn(name, tuple(parameter.shape))))
    return model


def whole_model(model):
    """Loss, its gradients, and answers, in fp32, all by LAVIS's own methods."""
    import torch

    pixels = torch.from_numpy(drawn("pixels", (2, 3, VIT["image"], VIT["image"]))).float()
    results = {"image_features": model.ln_vision(model.visual_encoder(pixels)).detach().numpy()}
    # LAVIS adds a newline; the ids' last token stands for it. Its prompt, one token, carries no loss.
    loss = model({"image": pixels, "text_input": [" ".join(map(str, ids)) for ids in TEXTS]})["loss"]
    loss.backward()
    results["loss"] = loss.detach().numpy()
    results |= _gradients(model.Qformer, "loss_gradient/")
    answers = model.generate(
        {"image": pixels, "prompt": " ".join(map(str, PROMPT))}, num_beams=1, max_length=NEW_TOKENS, min_length=0
    )
    results["answers"] = np.array([[int(word) for word in answer.split()] for answer in answers])
    return results


def prefixed_qformer(model):
    """The Q-Former's output with a prefix, and the gradients of a sum over it, in fp64.

    LAVIS knows no prefix: here what its key and value projections give is lengthened in front.
    """
    import torch

    qformer = model.Qformer.double()
    qformer.zero_grad()
    shape = (2, PREFIX_TOKENS, QFORMER["width"])
    prefix = {part: torch.from_numpy(drawn(f"{part}_prefix", shape)).requires_grad_() for part in ("key", "value")}
    for layer in qformer.bert.encoder.layer:
        if layer.has_cross_attention:
            for part, tokens in prefix.items():
                projection = getattr(layer.crossattention.self, part)
                projection.register_forward_hook(lambda _, __, out, tokens=tokens: torch.cat([tokens, out], dim=1))
    features = torch.from_numpy(drawn("features", (2, 5, VIT["width"])))
    output = qformer.bert(
        query_embeds=model.query_tokens.double().expand(2, -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(2, PREFIX_TOKENS + features.shape[1], dtype=torch.long),
        return_dict=True,
    ).last_hidden_state
    (output * torch.from_numpy(drawn("weights", tuple(output.shape)))).sum().backward()
    results = {"prefixed_output": output.detach().numpy()}
    results |= {f"prefixed_gradient/{part}": sampled(tokens.grad.numpy()) for part, tokens in prefix.items()}
    return results | _gradients(qformer, "prefixed_gradient/")


def _gradients(qformer, prefix):
    return {
        f"{prefix}Qformer.{name}": sampled(parameter.grad.numpy())
        for name, parameter in qformer.named_parameters()
        if "crossattention" in name
    }


if __name__ == "__main__":
    reference = lavis_model()
    results = whole_model(reference)
    results |= prefixed_qformer(reference)
    np.savez_compressed(sys.argv[1], **results)
