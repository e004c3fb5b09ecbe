"""LAVIS's files against the transformers folder of the same model, and every way in which they can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from artkv.config import ModelConfig
from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.models.backbone.transformers_backend import open_transformers_backbone
from artkv.models.files.blip2_files import open_blip2
from tests.models.lavis_writing import LavisFolder, write_lavis_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lavis(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> LavisFolder:
    return write_lavis_folder(tmp_path_factory.mktemp("lavis"), tiny_tokenizer)


@pytest.fixture
def own(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> LavisFolder:
    """One that a test may damage."""
    return write_lavis_folder(tmp_path, tiny_tokenizer)


def change(path: Path, edit: Callable[[dict[str, Any]], object], key: str | None = "model") -> None:
    content = torch.load(path, weights_only=True)
    edit(content[key] if key else content)
    torch.save(content, path)


@pytest.mark.parametrize("kind", ["pretrained_config", "finetuned_config"])
def test_tensors_config_and_hash_are_those_of_the_transformers_folder(lavis: LavisFolder, kind: str) -> None:
    folder = open_blip2(ModelConfig(blip2=str(lavis.folder)))
    files = open_blip2(getattr(lavis, kind))
    assert sorted(files.names()) == sorted(folder.names())
    for name in folder.names():
        assert torch.equal(files.source.tensor(name), folder.source.tensor(name)), name
    assert files.weight_digests() == folder.weight_digests()
    for part in ("vision_config", "qformer_config", "text_config"):
        expected = getattr(folder.config, part).to_dict()
        found = getattr(files.config, part).to_dict()
        differing = {key for key in expected if expected[key] != found.get(key)}
        assert differing <= {"initializer_range", "dtype", "architectures"}
    assert files.config.num_query_tokens == 6
    assert files.image_settings == folder.image_settings


def test_the_model_computes_as_the_folders_with_the_eps_of_lavis(lavis: LavisFolder) -> None:
    """transformers' own modules with ln_vision's eps set to LAVIS's are the reference, bit for bit."""
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    stock = lavis.model
    before = stock.vision_model.post_layernorm.eps
    backbone, of_folder = (
        open_transformers_backbone(open_blip2(model), torch.float32, CPU).load(single_process(CPU))
        for model in (lavis.pretrained_config, ModelConfig(blip2=str(lavis.folder)))
    )
    try:
        with torch.no_grad():
            assert torch.equal(of_folder.encode_images(pixels), stock.get_image_features(pixels).last_hidden_state)
            stock.vision_model.post_layernorm.eps = 1e-5
            expected = stock.get_image_features(pixels)
            features = backbone.encode_images(pixels)
            visual_tokens = backbone.project_queries(backbone.query_images(features, None))
    finally:
        stock.vision_model.post_layernorm.eps = before
    assert torch.equal(features, expected.last_hidden_state)
    assert torch.equal(visual_tokens, expected.pooler_output)
    assert not torch.equal(features, of_folder.encode_images(pixels))  # so eps is seen at all


def test_weights_stay_memory_mapped(lavis: LavisFolder) -> None:
    source = open_blip2(lavis.pretrained_config).source
    spans: dict[str, list[tuple[int, int]]] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = line.split()[0].split("-")
        spans.setdefault(line.split()[-1], []).append((int(start, 16), int(end, 16)))
    for name, path in [
        ("query_tokens", lavis.pth),
        ("vision_model.encoder.layers.1.self_attn.qkv.weight", lavis.vit),
        ("language_model.model.decoder.layers.1.fc1.weight", lavis.opt / "pytorch_model.bin"),
    ]:
        address = source.tensor(name).data_ptr()
        assert any(start <= address < end for start, end in spans[str(path)]), name


def test_position_embedding_is_resized_to_the_size_that_lavis_trained_at(own: LavisFolder) -> None:
    """Sides of 2 patches to 3, against bicubic interpolation with the kernel written out (a = -0.75)."""
    change(own.pth, lambda content: content.update(config={"model": {"image_size": 42}}), key=None)
    files = open_blip2(own.pretrained_config)
    assert files.config.vision_config.image_size == 42
    assert files.image_settings.size == 42
    name = "vision_model.embeddings.position_embedding"
    found = files.source.tensor(name)
    stored = own.model.state_dict()[name]
    weights = torch.zeros(3, 2, dtype=torch.float64)
    for target in range(3):
        centre = (target + 0.5) * 2 / 3 - 0.5
        first = int(torch.tensor(centre).floor()) - 1
        for tap in range(first, first + 4):
            distance = abs(centre - tap)
            near, far = distance <= 1, distance < 2
            a = -0.75
            value = (
                (a + 2) * distance**3 - (a + 3) * distance**2 + 1
                if near
                else (a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a if far else 0.0)
            )
            weights[target, min(max(tap, 0), 1)] += value
    grid = stored[0, 1:].double().reshape(2, 2, -1)
    expected = torch.einsum("yi,xj,ijd->yxd", weights, weights, grid).flatten(0, 1)
    assert torch.equal(found[0, 0], stored[0, 0])
    # fp32 against fp64: rounding; the worst seen is 2e-7.
    torch.testing.assert_close(found[0, 1:].double(), expected, rtol=0, atol=2e-6)


def test_what_the_pth_holds_of_opt_goes_before_the_folder(own: LavisFolder) -> None:
    name = "model.decoder.layers.1.fc1.bias"
    tuned = torch.full((64,), 7.0)
    change(own.pth, lambda state: state.update({f"opt_model.{name}": tuned}))
    files = open_blip2(own.pretrained_config)
    assert torch.equal(files.source.tensor(f"language_model.{name}"), tuned)
    # A whole OPT in the file needs no weights beside its config and tokenizer.
    opt = {f"opt_model.{n}": t for n, t in own.model.language_model.state_dict().items()}
    change(own.pth, lambda state: state.update(opt))
    (own.opt / "pytorch_model.bin").unlink()
    whole = open_blip2(own.pretrained_config).weight_digests()
    assert whole == open_blip2(ModelConfig(blip2=str(own.folder))).weight_digests()


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_hub_weights_are_fetched_in_one_format(
    own: LavisFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_safetensors: bool
) -> None:
    """A hub that holds safetensors and `.bin`, or `.bin` alone, as facebook/opt-2.7b does."""
    hub, local = own.opt, tmp_path / "downloaded"
    if has_safetensors:
        save_file(torch.load(hub / "pytorch_model.bin", weights_only=True), hub / "model.safetensors")

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert name == "facebook/opt-2.7b"
        local.mkdir(exist_ok=True)
        for path in hub.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, local)
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    files = open_blip2(own.pretrained_config.model_copy(update={"opt": "facebook/opt-2.7b"}))
    name = "model.safetensors" if has_safetensors else "pytorch_model.bin"
    assert local / name in files.source.files
    fetched = {path.name for path in local.iterdir() if path.suffix in (".bin", ".safetensors")}
    assert fetched == {name}


def test_opt_may_be_that_of_a_blip2_folder(lavis: LavisFolder) -> None:
    digests = open_blip2(lavis.pretrained_config).weight_digests()
    files = open_blip2(lavis.pretrained_config.model_copy(update={"opt": str(lavis.folder)}))
    assert files.weight_digests() == digests
    assert files.source.files[-1] == lavis.folder / "model.safetensors"


def test_opt_as_save_pretrained_writes_it_and_in_half_precision(own: LavisFolder) -> None:
    """The hash is that of bfloat16, so a head kept in fp16 beside an embedding in fp32 is still the same head."""
    digests = open_blip2(own.pretrained_config).weight_digests()
    (own.opt / "pytorch_model.bin").unlink()
    own.model.language_model.save_pretrained(own.opt)
    assert open_blip2(own.pretrained_config).weight_digests() == digests
    head = "opt_model.lm_head.weight"
    change(own.pth, lambda state: state.update({head: state[head].half()}))
    assert open_blip2(own.pretrained_config).weight_digests() == digests
    change(own.pth, lambda state: state.update({head: state[head] + 0.1}))
    with pytest.raises(UserError, match=r"opt_model\.lm_head\.weight differs from opt_model\.model\.decoder\.embed"):
        open_blip2(own.pretrained_config)


def test_missing_unexpected_and_misshapen_tensors_are_named_as_lavis_does(own: LavisFolder) -> None:
    def damage(state: dict[str, Tensor]) -> None:
        del state["Qformer.bert.encoder.layer.2.crossattention.self.key.weight"]
        state["opt_proj.weight"] = torch.zeros(41, 128)

    change(own.pth, damage)
    change(own.vit, lambda state: state.pop("blocks.1.mlp.fc2.bias"), key=None)
    with pytest.raises(UserError) as error:
        open_blip2(own.pretrained_config)
    message = str(error.value)
    assert (
        "2 missing: Qformer.bert.encoder.layer.2.crossattention.self.key.weight, visual_encoder.blocks.1.mlp" in message
    )
    assert "opt_proj.weight has shape (41, 128), their files says (40, 128)" in message
    change(own.pth, lambda state: state.update({"t5_proj.weight": torch.zeros(1), "visual_encoder.x": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"blip2\.pth: holds 2 unexpected: t5_proj\.weight, visual_encoder\.x"):
        open_blip2(own.pretrained_config)
    change(own.vit, lambda state: state.update({"blocks.1.ls1.gamma": torch.zeros(1)}), key=None)
    change(own.pth, lambda state: [state.pop("t5_proj.weight"), state.pop("visual_encoder.x")])
    with pytest.raises(UserError, match=r"eva_vit_g\.pth: holds 1 unexpected: visual_encoder\.blocks\.1\.ls1\.gamma"):
        open_blip2(own.pretrained_config)


def test_half_of_a_bias_is_an_error(own: LavisFolder) -> None:
    change(own.vit, lambda state: state.pop("blocks.1.attn.v_bias"), key=None)
    with pytest.raises(
        UserError,
        match=r"holds visual_encoder\.blocks\.1\.attn\.q_bias without its counterpart, .*1\.attn\.v_bias; fetch",
    ):
        open_blip2(own.pretrained_config)


def _plain(own: LavisFolder, **changes: Any) -> ModelConfig:
    return own.pretrained_config.model_copy(update=changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda own: _plain(own, opt=None), r"model\.opt is not set, and the LAVIS file .*; give facebook/opt-2\.7b"),
        (lambda own: _plain(own, vit=None), r"model\.vit is not set, and .*blip2\.pth holds no ViT; give the eva"),
        (lambda own: _plain(own, blip2=str(own.finetuned)), r"holds a whole ViT itself; leave model\.vit out"),
        (lambda own: _plain(own, vit=own.pth), r"model\.vit = .*blip2\.pth: is no EVA ViT of LAVIS"),
        (lambda own: _plain(own, vit=own.opt), r"model\.vit = .*opt: cannot be read \(is a folder"),
        (lambda own: _plain(own, blip2=str(own.vit)), r"eva_vit_g\.pth: holds .* unexpected"),
        (lambda own: _plain(own, blip2="nowhere.pth"), r"model\.blip2 = 'nowhere\.pth': no such file"),
        (lambda own: _plain(own, opt="./nowhere"), r"model\.opt = '\./nowhere': no such folder"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_remedy(
    lavis: LavisFolder, edit: Callable[[LavisFolder], ModelConfig], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_blip2(edit(lavis))


def test_wrong_files_are_named(own: LavisFolder, tmp_path: Path) -> None:
    def fails(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_blip2(own.pretrained_config)

    (own.opt / "tokenizer.json").rename(own.opt / "elsewhere.json")
    fails("opt: no tokenizer there")
    (own.opt / "elsewhere.json").rename(own.opt / "tokenizer.json")
    (own.opt / "config.json").rename(own.opt / "elsewhere.json")
    fails(r"model\.opt = .*opt has no config\.json")
    (own.opt / "config.json").write_text('{"model_type": "gpt2"}')
    fails(r"model\.opt = .*: is gpt2, expected opt")
    (own.opt / "elsewhere.json").rename(own.opt / "config.json")
    (own.opt / "pytorch_model.bin").rename(own.opt / "model.bin")
    fails(r"opt: holds neither .*; model\.opt must name a folder")
    (own.opt / "model.bin").rename(own.opt / "pytorch_model.bin")
    torch.save({"model": 3}, own.pth)
    fails(r"model\.blip2 = .*blip2\.pth: holds no state dict, .*\(there is \['model'\]\)")
    torch.save([1], own.pth)
    fails("holds a list, expected a dict of tensors")
    torch.save({"model": {"Qformer.cls.x": torch.zeros(1)}}, own.pth)
    fails("holds nothing of BLIP-2")

    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Evil()}, own.pth)
    fails(r"may hold code \(it needs \w+.open\); not read")
    assert not (tmp_path / "ran").exists()
    own.pth.write_bytes(own.vit.read_bytes()[:2000])
    fails("is not a readable PyTorch checkpoint")


def test_sizes_that_are_none_of_lavis_are_an_error(own: LavisFolder) -> None:
    def narrow(state: dict[str, Tensor]) -> None:
        state["query_tokens"] = torch.zeros(1, 6, 100)

    change(own.pth, narrow)
    with pytest.raises(UserError, match="its Q-Former is 100 wide, LAVIS's has heads of 64"):
        open_blip2(own.pretrained_config)
    settings = json.dumps({"qformer_config": {"num_attention_heads": 4}})
    change(own.pth, lambda content: content.update(artkv=settings), key=None)
    with pytest.raises(UserError, match=r"weights do not fit their files: "):  # 100 wide now, but nothing else is
        open_blip2(own.pretrained_config)
