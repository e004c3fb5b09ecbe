import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from artkv.config import Config, ModelConfig, load_config, recipe_path
from artkv.errors import UserError
from artkv.models.files.blip2_files import BLIP2_OPT_2_7B
from artkv.planning.shapes import frozen_bytes, model_shapes, read_blip2_config
from tests.models.lavis_writing import write_lavis_folder
from tests.planning.conftest import build

VARIANTS = [
    {},
    {"trainable": {"lora": {"targets": ("qformer", "opt"), "rank": 3}}},
    {"trainable": {"qformer_cross_attention": False, "lora": {"targets": ("qformer",)}}},
    {"kv_modulation": {"shared_across_layers": False, "gate": "zero"}},
    {"kv_modulation": {"enabled": False}},
    {"kv_modulation": {"injection": "decoupled", "gate": "zero", "gate_per": "head"}},
    {
        "kv_modulation": {
            "injection": "film",
            "num_prefix_tokens": 8,
            "shared_across_layers": False,
            "gate": "zero",
            "gate_per": "layer",
        }
    },
    {"kv_modulation": {"injection": "film", "num_prefix_tokens": 8, "film": "queries"}},
    {"kv_modulation": {"injection": "prompt"}, "trainable": {"lora": {"targets": ("qformer", "opt"), "rank": 3}}},
]


def _bytes(*modules: nn.Module | nn.Parameter) -> int:
    """Frozen parameters and buffers of real modules, tied ones once."""
    tensors = {}
    for module in modules:
        own = [module] if isinstance(module, nn.Parameter) else [*module.parameters(), *module.buffers()]
        tensors |= {tensor.data_ptr(): tensor for tensor in own if not tensor.requires_grad}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_are_the_real_models(settings: Callable[..., Config], variant: dict) -> None:
    config = settings(**variant)
    real = build(config).model
    shapes = model_shapes(config, torch.float32, config.trainable.lora.targets)

    expected = {name: tuple(parameter.shape) for name, parameter in real.named_trainables().items()}
    assert shapes.trainable_shapes() == expected

    # To the byte: the same tensors.
    found = frozen_bytes(shapes)
    stock = real.backbone._model
    decoder = real.backbone.language_model.model.decoder
    outside = [decoder.embed_tokens, decoder.embed_positions, decoder.final_layer_norm, stock.language_model.lm_head]
    assert found.vit == _bytes(stock.vision_model)
    assert found.qformer == _bytes(stock.qformer, stock.language_projection, stock.query_tokens)
    assert found.opt_blocks == _bytes(decoder.layers)
    assert found.opt_outside_blocks == _bytes(*outside)
    assert found.art_encoders == _bytes(*real.parts.art_encoders)


def test_bfloat16_halves_all_but_the_efficientnet(tiny_config: Config) -> None:
    full, half = (frozen_bytes(model_shapes(tiny_config, dtype, [])) for dtype in (torch.float32, torch.bfloat16))
    for part in ("vit", "qformer", "opt_blocks", "opt_outside_blocks"):
        assert 2 * getattr(half, part) == getattr(full, part)
    assert half.art_encoders == full.art_encoders


def test_the_true_size_is_the_known_one() -> None:
    config = load_config(recipe_path("artquest.yaml"))
    shapes = model_shapes(config, torch.bfloat16, [])
    found = frozen_bytes(shapes)
    width, ffn = 2560, 10240
    block = 4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width
    assert sum(prod(shape) for shape in shapes.opt_block_shapes.values()) == block == 78_676_480
    assert found.opt_blocks == 32 * block * 2 == 5_035_294_720
    # The vocabulary, 2048 + 2 positions, the final LayerNorm; the head is tied and must not count again.
    assert found.opt_outside_blocks == 2 * width * (50304 + 2050 + 2)
    vit_width = 1408
    vit_block = 4 * vit_width**2 + 4 * vit_width + 2 * vit_width * 6144 + 6144 + vit_width + 4 * vit_width
    around = vit_width * (3 * 14 * 14 + 1) + vit_width * (1 + 257) + 2 * vit_width  # patches, class, positions, norm
    assert found.vit == 2 * (39 * vit_block + around)
    # Six cross-attentions, and the generator: 1536 to 768 to 8 x 768, 8 tokens, two projections.
    cross = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    generator = 1536 * 768 + 768 + 768 * 6144 + 6144 + 8 * 768 + 2 * (768 * 768 + 768)
    assert sum(prod(shape) for shape in shapes.trainable_shapes().values()) == 6 * cross + generator


def test_the_folders_config_is_read(tiny_blip2_folder: Path) -> None:
    assert read_blip2_config(ModelConfig(blip2=str(tiny_blip2_folder))).text_config.hidden_size == 40
    assert read_blip2_config(ModelConfig(blip2=BLIP2_OPT_2_7B)).text_config.hidden_size == 2560


def test_lavis_files_have_the_shapes_of_the_transformers_folder(
    settings: Callable[..., Config], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lavis = write_lavis_folder(tmp_path, tiny_tokenizer)
    of_folder, of_files = (
        model_shapes(settings(model=model.model_dump()), torch.float32, [])
        for model in (ModelConfig(blip2=str(lavis.folder)), lavis.pretrained_config)
    )
    assert of_files.trainable_shapes() == of_folder.trainable_shapes()
    assert frozen_bytes(of_files) == frozen_bytes(of_folder)
    assert of_files.opt_block_shapes == of_folder.opt_block_shapes
    with pytest.raises(UserError, match=r"model\.opt is not set"):
        read_blip2_config(lavis.pretrained_config.model_copy(update={"opt": None}))


def test_shapes_of_another_hub_id_are_those_of_its_config(
    tiny_blip2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tiny_blip2_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert read_blip2_config(ModelConfig(blip2="some/model", revision="main")).text_config.hidden_size == 40
    assert asked == [("some/model", "main", ["config.json"])]  # no weights


def test_unknown_shapes_are_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: str, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(UserError, match="some/model.*not to be had from the hub: the hub is not reached .*no network"):
        read_blip2_config(ModelConfig(blip2="some/model"))
    with pytest.raises(UserError, match="model.blip2 = './some': no such folder; give a hub id or an existing folder"):
        read_blip2_config(ModelConfig(blip2="./some"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        read_blip2_config(ModelConfig(blip2=str(tmp_path)))
    parts = {"vision_config": {}, "qformer_config": {}, "text_config": {"model_type": "t5"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2", **parts}))
    with pytest.raises(UserError, match="is blip-2 with t5, expected"):
        read_blip2_config(ModelConfig(blip2=str(tmp_path)))
