"""The two backends against each other, on the same files: features, loss, gradients, answers, hashes, names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from artkv.config import ModelConfig
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.kv_modulation import KVPrefix
from artkv.models.assembly import BuiltModel
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.backbone.lavis_backend import open_lavis_backbone
from artkv.models.backbone.transformers_backend import open_transformers_backbone
from artkv.models.files.blip2_files import open_blip2
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from tests.models.conftest import greedy_answers, training_batch, views
from tests.models.lavis_writing import LavisFolder, write_lavis_folder
from tests.models.test_kv_modulated_blip2 import prompts

Build = Callable[..., BuiltModel]
CPU = torch.device("cpu")
LORA = {"lora": {"targets": ["qformer", "opt"], "rank": 2, "alpha": 4}}


@pytest.fixture(scope="module")
def lavis_files(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> LavisFolder:
    return write_lavis_folder(tmp_path_factory.mktemp("lavis"), tiny_tokenizer)


def both_backbones(model: ModelConfig, dtype: torch.dtype = torch.float32) -> tuple[Blip2Backbone, Blip2Backbone]:
    files = open_blip2(model)
    lavis = open_lavis_backbone(files, dtype, CPU).load(single_process(CPU))
    return open_transformers_backbone(files, dtype, CPU).load(single_process(CPU)), lavis


def switch_everything_on(model: KVModulatedBlip2) -> None:
    """A gate and adapters that are not at their start, where they would hide what is behind them."""
    with torch.no_grad():
        for name, parameter in model.named_trainables().items():
            if name == "kv_prefix_gate" or ".lora_B." in name:
                parameter.fill_(0.1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("trainable", [{}, LORA, {"qformer_cross_attention": False, **LORA}])
@pytest.mark.parametrize(
    "kv_modulation", [{}, {"shared_across_layers": False}, {"gate": "zero"}, {"enabled": False}], ids=str
)
def test_loss_gradients_and_answers_agree(build_on: Build, kv_modulation: dict, trainable: dict) -> None:
    stock, lavis = (
        build_on(backend, kv_modulation=kv_modulation, trainable=trainable) for backend in ("transformers", "lavis")
    )
    assert stock.frozen_hash == lavis.frozen_hash
    assert stock.initial_values.keys() == lavis.initial_values.keys()
    assert all(torch.equal(value, lavis.initial_values[name]) for name, value in stock.initial_values.items())
    losses, answers = [], []
    for model in (stock.model, lavis.model):
        switch_everything_on(model)
        loss = model(training_batch(model.backbone.tokenizer)).loss_sum
        loss.backward()
        losses.append(loss.item())
        visual = model.visual_tokens(model.encode(views())).detach()
        answers.append(greedy_answers(model, visual, prompts(model.backbone.tokenizer, [0, 1, 2]), max_new_tokens=6))
    # fp32, losses of about 80; the worst seen is 1e-7 relative.
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1
    found = lavis.model.named_trainables()
    for name, parameter in stock.model.named_trainables().items():
        if name.endswith("crossattention.attention.key.bias") and not kv_modulation.get("enabled", True):
            continue  # rounding alone, see the reference
        # fp32; the worst seen is 1e-5, of a key bias, 7e-6 of the gate.
        assert relative_error(found[name].grad, parameter.grad) < 5e-5, name


@pytest.mark.parametrize("form", ["folder", "pretrained", "finetuned"])
def test_features_agree_whatever_they_come_from(lavis_files: LavisFolder, form: str) -> None:
    configs = {
        "folder": ModelConfig(blip2=str(lavis_files.folder)),
        "pretrained": lavis_files.pretrained_config,
        "finetuned": lavis_files.finetuned_config,
    }
    stock, lavis = both_backbones(configs[form])
    assert stock.weight_digests() == lavis.weight_digests()
    pixels = views().vit_pixels
    features = stock.encode_images(pixels)
    # fp32, values up to 4; the worst seen are 1.2e-6 and 9e-7.
    assert (lavis.encode_images(pixels) - features).abs().max() < 5e-6
    visual = [backbone.project_queries(backbone.query_images(features, None)) for backbone in (stock, lavis)]
    assert (visual[0] - visual[1]).abs().max() < 1e-5


def random_prefix(dtype: torch.dtype) -> KVPrefix:
    generator = torch.Generator().manual_seed(3)
    k, v = (torch.randn(2, 4, 3, 12, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return KVPrefix(k, v, torch.full((1,), 0.7, dtype=dtype, requires_grad=True))


def test_the_qformer_agrees_in_fp64(tiny_world: Path) -> None:
    features = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    results = []
    for backbone in both_backbones(ModelConfig(blip2=str(tiny_world / "blip2")), torch.float64):
        trained = backbone.train_cross_attention()
        for parameter in trained.values():
            parameter.data = parameter.data.double()
        prefix = random_prefix(torch.float64)
        output = backbone.query_images(features, prefix)
        # Another graph before the first one's backward: a prefix left on a module would be the second's.
        backbone.query_images(features.flip(0), random_prefix(torch.float64))
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        (output * weights).sum().backward()
        gradients = {name: parameter.grad for name, parameter in trained.items()}
        results.append((output, gradients | {"k": prefix.k.grad, "v": prefix.v.grad, "gate": prefix.gate.grad}))
    (output, gradients), (lavis_output, lavis_gradients) = results
    # fp64, values up to 3; the worst seen are 1.3e-15 and 1e-15.
    assert (output - lavis_output).abs().max() < 1e-12
    assert gradients.keys() == lavis_gradients.keys()
    for name, gradient in gradients.items():
        assert relative_error(lavis_gradients[name], gradient) < 1e-12, name


def test_every_parameter_has_its_neutral_name_and_value(tiny_world: Path) -> None:
    stock, lavis = (b.named_parameters() for b in both_backbones(ModelConfig(blip2=str(tiny_world / "blip2"))))
    halves = {name for name in lavis if name.endswith((".q_bias", ".v_bias"))}
    assert lavis.keys() - halves == {name for name in stock if not name.endswith("qkv.bias")}
    assert {f"{name.removesuffix('qkv.bias')}{half}_bias" for name in stock if "qkv.bias" in name for half in "qv"} == (
        halves
    )
    for name in lavis.keys() - halves:
        assert torch.equal(lavis[name], stock[name]), name


def test_in_bfloat16_lavis_computes_in_bfloat16(build_on: Build, bf16_folder: Path) -> None:
    losses = []
    for backend in ("transformers", "lavis"):
        model = build_on(backend, model={"blip2": str(bf16_folder), "dtype": "bfloat16"}).model
        assert model.backbone.encode_images(views().vit_pixels).dtype == torch.bfloat16
        loss = model(training_batch(model.backbone.tokenizer)).loss_sum
        loss.backward()
        assert all(parameter.grad.dtype == torch.bfloat16 for parameter in model.parameters())
        losses.append(loss.item())
    # bf16 rounds to 4e-3 at each of some dozens of operations, which the backends order differently; seen 2e-4.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_what_lavis_cannot_hold_is_refused(tiny_blip2_folder: Path, tmp_path: Path) -> None:
    changed = {"key bias": "its key part is not zero", "activation": "its ViT computes gelu, and the model's is relu"}
    for change, message in changed.items():
        folder = tmp_path / change
        folder.mkdir()
        for path in tiny_blip2_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if change == "key bias":
            tensors = load_file(folder / "model.safetensors")
            tensors["vision_model.encoder.layers.1.self_attn.qkv.bias"][40] = 0.5
            save_file(tensors, folder / "model.safetensors")
        else:
            config = folder / "config.json"
            config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
        files = open_blip2(ModelConfig(blip2=str(folder)))
        with pytest.raises(UserError, match=message):
            open_lavis_backbone(files, torch.float32, CPU)
