"""Loading a transformers folder: against stock transformers, and every way in which it can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2ForConditionalGeneration

from artkv.config import ModelConfig
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.models.backbone.transformers_backend import open_transformers_backbone
from artkv.models.files.blip2_files import open_blip2

CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32):
    return open_transformers_backbone(open_blip2(ModelConfig(blip2=str(folder))), dtype, CPU).load(single_process(CPU))


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tiny_blip2_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(tiny_blip2_folder, tmp_path / "blip2")
    return tmp_path / "blip2"


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_features_equal_stock_transformers_bit_for_bit(tiny_blip2_folder: Path) -> None:
    backbone = load(tiny_blip2_folder)
    stock = Blip2ForConditionalGeneration.from_pretrained(tiny_blip2_folder).eval()
    with torch.no_grad():
        expected = stock.get_image_features(pixels())
        features = backbone.encode_images(pixels())
        visual_tokens = backbone.project_queries(backbone.query_images(features, None))
    assert torch.equal(features, expected.last_hidden_state)
    assert torch.equal(visual_tokens, expected.pooler_output)


def test_everything_is_frozen_in_eval_mode_and_of_the_dtype(tiny_blip2_folder: Path) -> None:
    backbone = load(tiny_blip2_folder, torch.bfloat16)
    for module in (backbone.language_model, backbone.qformer):
        assert not any(part.training for part in module.modules())
    for parameter in backbone.named_parameters().values():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad
    trained = backbone.train_cross_attention()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    stored = load_file(tiny_blip2_folder / "model.safetensors")
    assert all(torch.equal(parameter, stored[name]) for name, parameter in trained.items())


def test_weights_of_the_right_dtype_stay_memory_mapped(folder: Path) -> None:
    backbone = load(folder)
    addresses = {p.data_ptr() for p in backbone.named_parameters().values()}
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [
        tuple(int(bound, 16) for bound in line.split()[0].split("-"))
        for line in lines
        if line.endswith(str(folder / "model.safetensors"))
    ]
    assert spans
    assert all(any(start <= address < end for start, end in spans) for address in addresses)


def test_shards_load_like_one_file_and_the_hash_ignores_layout_and_stored_dtype(
    tiny_blip2_folder: Path, tmp_path: Path
) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(tiny_blip2_folder)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    model.float().save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    for copy in ("bf16", "sharded"):
        for path in tiny_blip2_folder.glob("*.json"):
            if not (tmp_path / copy / path.name).exists():
                shutil.copy(path, tmp_path / copy)
    one, other = load(tmp_path / "bf16"), load(tmp_path / "sharded")
    assert one.weight_digests() == other.weight_digests()
    assert other.weight_digests() == load(tmp_path / "sharded").weight_digests()  # remembered
    for name, parameter in one.named_parameters().items():
        assert torch.equal(parameter, other.named_parameters()[name])


def test_the_tied_head_may_be_in_the_file_if_it_is_the_embedding(folder: Path) -> None:
    embedding = "language_model.model.decoder.embed_tokens.weight"
    digests = load(folder).weight_digests()
    rewrite(folder, lambda t: t.update({"language_model.lm_head.weight": t[embedding].clone()}))
    backbone = load(folder)
    assert backbone.weight_digests() == digests
    assert backbone.language_model.lm_head.weight is backbone.language_model.get_input_embeddings().weight
    rewrite(folder, lambda t: t.update({"language_model.lm_head.weight": t[embedding] + 1}))
    with pytest.raises(UserError, match="artkv reads models with tied embeddings only"):
        load(folder)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(folder: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["qformer.encoder.layer.2.crossattention.attention.key.weight"]
        tensors["vision_model.stranger"] = torch.zeros(1)
        tensors["query_tokens"] = torch.zeros(1, 5, 48)

    rewrite(folder, damage)
    with pytest.raises(UserError) as error:
        load(folder)
    message = str(error.value)
    assert "1 missing: qformer.encoder.layer.2.crossattention.attention.key.weight" in message
    assert "1 unexpected: vision_model.stranger" in message
    assert "query_tokens has shape (1, 5, 48), config.json says (1, 6, 48)" in message


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "holds neither model.safetensors nor pytorch_model.bin"),
        ("tokenizer.json", "no tokenizer there"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
    ],
)
def test_a_file_that_is_not_there_is_named(folder: Path, remove: str, message: str) -> None:
    (folder / remove).unlink()
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_torn_file_another_architecture_and_no_folder_at_all_are_user_errors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {"model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="expected blip-2 with opt"):
        load(folder)
    with pytest.raises(UserError, match="no such folder; give a hub id or an existing folder"):
        load(folder / "nowhere")


def test_an_untrusted_pickle_is_read_without_running_it(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert load(folder).weight_digests()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"query_tokens": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"may hold code \(it needs \w+\.open\); not read"):
        load(folder)
    assert not (tmp_path / "ran").exists()
