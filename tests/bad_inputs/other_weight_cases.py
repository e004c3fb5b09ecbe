"""Weights that are whole, and something else than what belongs there."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bad_inputs.cases import Area, BadInput
from tests.bad_inputs.model_folder_cases import folder
from tests.bad_inputs.weight_cases import art


def _of(name: str) -> Callable[[Path], object]:
    """Writes a file with one tensor of this name."""
    tree = {name: torch.ones(1)}
    return lambda path: save_file(tree, path) if path.suffix == ".safetensors" else torch.save(tree, path)


OTHER_WEIGHTS = Area(
    "Weights of something else",
    [
        *(
            BadInput(
                f"{what}, for an art encoder",
                art(name, content),
                (f"efficientnet.checkpoint = {{folder}}/{name}: holds {holds}", "give the art encoder's"),
            )
            for what, name, content, holds in [
                ("a file without tensors", "art.safetensors", lambda path: save_file({}, path), "no tensors; "),
                (
                    "BLIP-2's weights",
                    "art.safetensors",
                    _of("language_model.model.decoder.final_layer_norm.bias"),
                    "BLIP-2's weights, and no art encoder; ",
                ),
                (
                    "LAVIS's BLIP-2",
                    "art.pth",
                    _of("Qformer.bert.embeddings.LayerNorm.bias"),
                    "BLIP-2's weights, and no",
                ),
                ("an adapter", "art.safetensors", _of("kv_prefix_generator.key.bias"), "an adapter of artkv, and no"),
                (
                    "a training that is on its way",
                    "art.safetensors",
                    _of("averaged.conv_stem.weight"),
                    "a training of artkv art-encoder on its way, and no",
                ),
                ("OPT's weights", "art.bin", _of("decoder.embed_tokens.weight"), "OPT's weights, and no"),
                (
                    "another network",
                    "art.pth",
                    _of("layer1.0.conv1.weight"),
                    "no EfficientNet, in neither timm's layout (conv_stem.weight, blocks.0.0....) nor",
                ),
                ("a classifier alone", "art.safetensors", _of("classifier.weight"), "no EfficientNet, in neither"),
            ]
        ),
        BadInput(
            "a JSON file for an art encoder",
            art("art.pth", b'{"conv_stem.weight": 3}'),
            ("efficientnet.checkpoint = {folder}/art.pth: is not a readable PyTorch checkpoint",),
        ),
        BadInput(
            "safetensors that are called pytorch_model.bin",
            folder(lambda blip2: (blip2 / "model.safetensors").rename(blip2 / "pytorch_model.bin")),
            ("pytorch_model.bin: is not a readable PyTorch checkpoint (it holds safetensors)", "to model.safetensors"),
        ),
        BadInput(
            "weights of PyTorch that are called model.safetensors",
            folder(lambda blip2: torch.save({"a": torch.ones(1)}, blip2 / "model.safetensors")),
            ("model.safetensors: is no safetensors file but PyTorch's", "rename it to pytorch_model.bin"),
        ),
    ],
)
