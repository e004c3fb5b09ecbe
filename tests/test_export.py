"""Exports, read back in artkv, by stock transformers and by LAVIS's modules."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Processor, PreTrainedTokenizerFast

import artkv.export as export_module
import artkv.models.files.blip2_writing as blip2_writing
from artkv.api import evaluate, load_model
from artkv.cli import main
from artkv.config import Config, ModelConfig, override_config
from artkv.datasets.tokenization import encode_prompt
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.answering import Ablation
from artkv.export import export
from artkv.files import save_tensors
from artkv.models.files.blip2_files import open_blip2
from artkv.run_folder.adapter_file import read_description
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint
from artkv.session import Session
from tests.models.lavis_writing import LavisFolder, lavis_state, write_lavis_folder, write_tokenizer_as_published
from tests.mounted import Disk
from tests.training_runs import Train

QUESTIONS = ["What is thing 0?", "What is thing 1?", "Who?"]


@pytest.fixture(scope="module")
def lavis(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> LavisFolder:
    return write_lavis_folder(tmp_path_factory.mktemp("lavis"), tiny_tokenizer)


@pytest.fixture
def picture(tiny_world: Path) -> Path:
    return tiny_world / "images" / "val0.png"


@dataclass(frozen=True)
class Run:
    """A trained run and what it answers."""

    checkpoint: Checkpoint
    config: Config
    adapter: dict[str, Tensor]


def of_lavis(lavis: LavisFolder, kind: str) -> list[str]:
    """Overrides for the model of `lavis` in one of its formats."""
    return {
        "folder": [f"model.blip2={lavis.folder}"],
        "pretrained": [f"model.blip2={lavis.pth}", f"model.vit={lavis.vit}", f"model.opt={lavis.opt}"],
        "finetuned": [f"model.blip2={lavis.finetuned}", f"model.opt={lavis.opt}"],
    }[kind]


def train(run_training: Train, config: Config, overrides: Sequence[str]) -> Run:
    quick = ["training.num_epochs=1", "evaluation.each_epoch=false", "training.learning_rate=0.01"]
    run_training([*quick, *overrides])
    opened = open_checkpoint(config.run.output_dir)
    return Run(opened, opened.config, opened.adapter())


def load_exported(path: Path) -> Session:
    return load_model(checkpoint=path)


def visual_tokens(loaded: Session, picture: Path, use_prefix: bool = True) -> Tensor:
    with torch.no_grad():
        return loaded.model.visual_tokens(loaded.encode(picture), use_prefix)


def assert_same_model(found: Session, expected: Session, picture: Path) -> None:
    """Bit for bit: the same tensors compute."""
    for use_prefix in (True, False):
        one, other = (visual_tokens(model, picture, use_prefix) for model in (found, expected))
        assert torch.equal(one, other)
    assert found.ask(picture, QUESTIONS) == expected.ask(picture, QUESTIONS)


@pytest.mark.parametrize("kind", ["folder", "pretrained"])
def test_an_adapter_is_one_file_that_answers_as_its_checkpoint(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path, kind: str,
    capsys: pytest.CaptureFixture[str], one_process: World, tiny_world: Path,
) -> None:  # fmt: skip
    cache = f"frozen.feature_cache={tmp_path / 'features'}"
    run = train(run_training, tiny_config, [*of_lavis(lavis, kind), "kv_modulation.gate=zero", cache])
    file = tmp_path / "painter.safetensors"
    assert main(["export", "--checkpoint", str(run.checkpoint.path), "--format", "adapter", "--output", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    with safe_open(file, framework="pt") as opened:
        metadata = {name: json.loads(text) for name, text in opened.metadata().items() if name != "format"}
    assert metadata["format_version"] == 1
    assert metadata["base_model"] == run.config.model.blip2
    assert metadata["kv_modulation"] == json.loads(run.config.kv_modulation.model_dump_json())
    assert metadata["frozen_hash"] == json.loads((run.checkpoint.path / "checkpoint.json").read_text())["identity"][
        "frozen_hash"
    ]  # fmt: skip
    assert "run" not in metadata
    assert metadata["frozen"] == json.loads(run.config.frozen.model_dump_json()) | {"feature_cache": "auto"}
    assert metadata["dataset"] == {"prompt": run.config.dataset.prompt}
    tensors = load_file(file)
    assert tensors.keys() == run.adapter.keys()
    assert all(torch.equal(tensors[name], run.adapter[name]) for name in tensors)
    assert_same_model(load_exported(file), load_model(run.config, run.checkpoint.path), picture)

    assert main(["ask", "--checkpoint", str(file), str(picture), QUESTIONS[0]]) == 0
    answer = capsys.readouterr().out
    assert main(["ask", "--checkpoint", str(run.checkpoint.path), str(picture), QUESTIONS[0]]) == 0
    assert capsys.readouterr().out == answer
    if kind == "folder":
        sets = [f"dataset.val={tiny_world / 'val.csv'}", f"dataset.image_root={tiny_world / 'images'}"]
        settings = override_config(open_checkpoint(file).config, sets)
        results = evaluate(file, "val", [Ablation("on", "on")], settings, one_process)
        assert results == evaluate(run.checkpoint, "val", [Ablation("on", "on")], world=one_process)
        assert (tmp_path / "painter" / "eval" / "val-on" / "metrics.json").is_file()
        # Exported again from the file: the same, but for the order of the metadata, which the format leaves open.
        export(open_checkpoint(file), open_checkpoint(file).config, "adapter", tmp_path / "again.safetensors")
        assert read_description(tmp_path / "again.safetensors") == read_description(file)
        assert (tmp_path / "again.safetensors").stat().st_size == file.stat().st_size


@pytest.mark.parametrize("kind", ["folder", "pretrained"])
def test_a_transformers_folder_loads_in_stock_transformers_and_answers_as_the_checkpoint(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path, kind: str
) -> None:
    run = train(run_training, tiny_config, of_lavis(lavis, kind))
    output = tmp_path / "exported"
    assert export(run.checkpoint, run.config, "transformers", output) == [output]
    stock, loading = Blip2ForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    base = open_blip2(run.config.model).source
    moved = 0
    for name, tensor in stock.named_parameters():
        expected = run.adapter.get(name)
        moved += expected is not None
        assert torch.equal(tensor, base.tensor(name) if expected is None else expected), name
    assert moved == sum(not name.startswith("kv_prefix") for name in run.adapter) > 0

    file = output / "kv_prefix.safetensors"
    expected_model = load_model(run.config, run.checkpoint.path)
    assert_same_model(load_exported(file), expected_model, picture)
    # It may be moved, the folder stands for the file in it, and LAVIS's weights keep their eps.
    moved_output = output.rename(tmp_path / "moved")
    assert open_checkpoint(moved_output).path == moved_output / file.name
    assert_same_model(load_exported(moved_output), expected_model, picture)
    assert "tmp" not in (moved_output / "config.json").read_text()  # no path of the machine


INJECTIONS = [
    ["kv_modulation.shared_across_layers=false", "kv_modulation.gate=zero", "kv_modulation.gate_per=head"],
    ["kv_modulation.injection=decoupled"],
    ["kv_modulation.injection=film", "kv_modulation.num_prefix_tokens=8", "kv_modulation.shared_across_layers=false"],
    ["kv_modulation.injection=film", "kv_modulation.num_prefix_tokens=8", "kv_modulation.film=queries"],
    ["kv_modulation.injection=prompt"],
]


@pytest.mark.parametrize("injection", INJECTIONS, ids=str)
def test_stock_transformers_with_the_documented_lines_answers_as_artkv(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path,
    monkeypatch: pytest.MonkeyPatch, injection: list[str],
) -> None:  # fmt: skip
    """The lines of docs/checkpoints.md, as they stand there."""
    run = train(run_training, tiny_config, [f"model.blip2={lavis.folder}", *injection])
    export(run.checkpoint, run.config, "transformers", tmp_path / "exported")
    shutil.copy(picture, tmp_path / "painting.jpg")
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    code = page.split("<!-- executed by tests/test_export.py -->\n\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/checkpoints.md", "exec"), scope)
    loaded = load_model(run.config, run.checkpoint.path)
    with torch.no_grad():
        found = scope["model"].get_image_features(scope["pixels"]).pooler_output
    expected = visual_tokens(loaded, picture)
    # Stock transformers hands a mask of ones to the cross-attention, artkv none: other kernels. Worst seen 1e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    off = visual_tokens(loaded, picture, use_prefix=False)
    assert found.shape != off.shape or not torch.allclose(found, off, rtol=0, atol=2e-5)
    # The whole model: one place for each visual token, as artkv asks.
    tokenizer = loaded.model.backbone.tokenizer
    prompt = encode_prompt(tokenizer, run.config.dataset.prompt, QUESTIONS[0])
    ids = torch.tensor([[scope["model"].config.image_token_id] * found.shape[1] + prompt])
    newline = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    given = scope["model"].generate(
        pixel_values=scope["pixels"], input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=newline
    )
    text = tokenizer.decode(given[0, ids.shape[1] :], skip_special_tokens=True).split("\n", 1)[0].strip()
    assert text == loaded.ask(picture, QUESTIONS[0])


@pytest.mark.parametrize("injection", INJECTIONS, ids=str)
def test_every_injection_comes_back_from_every_format(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path, injection: list[str]
) -> None:
    run = train(run_training, tiny_config, [f"model.blip2={lavis.folder}", *injection])
    expected = load_model(run.config, run.checkpoint.path)
    adapter = tmp_path / "painter.safetensors"
    export(run.checkpoint, run.config, "adapter", adapter)
    assert_same_model(load_exported(adapter), expected, picture)
    export(run.checkpoint, run.config, "transformers", tmp_path / "exported")
    assert_same_model(load_exported(tmp_path / "exported"), expected, picture)
    _, prefix = export(run.checkpoint, run.config, "lavis", tmp_path / "painter.pth")
    assert_same_model(load_exported(prefix), expected, picture)
    of_lavis_backend = load_model(override_config(open_checkpoint(prefix).config, ["model.backend=lavis"]), prefix)
    # fp32, values up to 10; the worst seen is 4e-6.
    found = visual_tokens(of_lavis_backend, picture)
    torch.testing.assert_close(found, visual_tokens(expected, picture), rtol=0, atol=4e-5)
    assert of_lavis_backend.ask(picture, QUESTIONS) == expected.ask(picture, QUESTIONS)


@pytest.mark.parametrize("kind", ["folder", "pretrained", "finetuned"])
def test_a_lavis_file_loads_back_and_answers_as_the_checkpoint(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path, kind: str
) -> None:
    run = train(run_training, tiny_config, of_lavis(lavis, kind))
    output, prefix = tmp_path / "painter.pth", tmp_path / "painter.kv_prefix.safetensors"
    assert export(run.checkpoint, run.config, "lavis", output) == [output, prefix]
    base = Blip2ForConditionalGeneration.from_pretrained(lavis.folder)
    base.load_state_dict({n: t for n, t in run.adapter.items() if not n.startswith("kv_prefix")}, strict=False)
    expected = lavis_state(base)
    content = torch.load(output, weights_only=True)
    state = content["model"]
    assert state.pop("Qformer.bert.embeddings.position_ids").tolist() == [list(range(512))]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    # Nothing is written twice, or with what lies round it: a bias is part of a longer one.
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())
    assert output.stat().st_size < 1.2 * sum(t.numel() * t.element_size() for t in base.parameters())
    assert_same_model(load_exported(prefix), load_model(run.config, run.checkpoint.path), picture)


def test_a_lavis_file_fills_the_modules_of_lavis(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder
) -> None:
    from artkv.models.backbone.lavis_backend import LavisBlip2
    from artkv.models.backbone.lavis_compatibility import shapes_only

    run = train(run_training, tiny_config, of_lavis(lavis, "pretrained"))
    export(run.checkpoint, run.config, "lavis", tmp_path / "painter.pth")
    state = torch.load(tmp_path / "painter.pth", weights_only=True)["model"]
    del state["Qformer.bert.embeddings.position_ids"]  # a buffer that artkv's LAVIS modules do without
    files = open_blip2(run.config.model)
    with shapes_only():
        modules = LavisBlip2(files.config, files.ln_vision_eps)
    modules.load_state_dict(state, strict=True, assign=True)


def test_parts_can_be_left_out_as_lavis_leaves_them_out(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path
) -> None:
    run = train(run_training, tiny_config, of_lavis(lavis, "pretrained"))
    export(run.checkpoint, run.config, "lavis", tmp_path / "small.pth", ["vit", "opt"])
    state = torch.load(tmp_path / "small.pth", weights_only=True)["model"]
    published = torch.load(lavis.pth, weights_only=True)["model"]
    kept = {name for name in published if not name.startswith(("Qformer.cls", "opt_model"))}
    kept -= {name for name in kept if ".word_embeddings." in name or ".intermediate." in name or "0.output." in name}
    assert {name for name in state if ".output." not in name} == {name for name in kept if ".output." not in name}
    prefix = tmp_path / "small.kv_prefix.safetensors"
    assert_same_model(load_exported(prefix), load_model(run.config, run.checkpoint.path), picture)


@pytest.mark.parametrize("format", ["transformers", "lavis"])
def test_lora_is_merged(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, picture: Path, format: Any
) -> None:
    overrides = ["trainable.lora.targets=[opt,qformer]", "trainable.lora.rank=2", "trainable.lora.alpha=3"]
    run = train(run_training, tiny_config, [*of_lavis(lavis, "folder"), *overrides])
    output = tmp_path / ("merged" if format == "transformers" else "merged.pth")
    written = export(run.checkpoint, run.config, format, output)
    prefix = output / "kv_prefix.safetensors" if format == "transformers" else written[1]
    config = open_checkpoint(prefix).config
    assert config.trainable.lora.targets == ()
    source, base = open_blip2(config.model).source, open_blip2(run.config.model).source
    pairs = [name.removesuffix(".lora_A.weight") for name in run.adapter if name.endswith(".lora_A.weight")]
    assert len(pairs) == 2 * (2 + 4)  # query and value of two OPT layers and of four Q-Former layers
    for name in pairs:
        a, b = run.adapter[f"{name}.lora_A.weight"].double(), run.adapter[f"{name}.lora_B.weight"].double()
        expected = base.tensor(f"{name}.weight").double() + 1.5 * (b @ a)
        assert b.abs().max() > 1e-4  # trained
        # fp32 against fp64 of values up to 1; worst seen 6e-8.
        torch.testing.assert_close(source.tensor(f"{name}.weight").double(), expected, rtol=0, atol=1e-6)
    merged, adapted = load_model(config, prefix), load_model(run.config, run.checkpoint.path)
    # W x + B A x against (W + B A) x: rounding of fp32; worst seen 2e-5 of values up to 10.
    torch.testing.assert_close(visual_tokens(merged, picture), visual_tokens(adapted, picture), rtol=1e-4, atol=1e-4)
    assert merged.ask(picture, QUESTIONS) == adapted.ask(picture, QUESTIONS)
    if format == "lavis":
        with pytest.raises(UserError, match="--leave-out opt: the checkpoint trained LoRA in it"):
            export(run.checkpoint, run.config, "lavis", tmp_path / "other.pth", ["opt"])


def test_the_control_has_no_prefix_to_write(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder
) -> None:
    run = train(run_training, tiny_config, [*of_lavis(lavis, "folder"), "kv_modulation.enabled=false"])
    export(run.checkpoint, run.config, "transformers", tmp_path / "control")
    assert not (tmp_path / "control" / "kv_prefix.safetensors").exists()
    assert export(run.checkpoint, run.config, "lavis", tmp_path / "control.pth") == [tmp_path / "control.pth"]
    folder = ModelConfig(blip2=str(tmp_path / "control"))
    file = ModelConfig(blip2=str(tmp_path / "control.pth"), opt=str(lavis.folder))
    assert open_blip2(folder).weight_digests() == open_blip2(file).weight_digests()
    assert open_blip2(folder).ln_vision_eps == open_blip2(file).ln_vision_eps == 1e-6


def test_weights_of_lavis_get_what_stock_transformers_needs_to_generate(
    lavis: LavisFolder, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Where OPT's vocabulary has room, as the published one has, `<image>` is added, and the hash stays."""
    wide = write_lavis_folder(tmp_path, tiny_tokenizer, spare_tokens=3)
    write_tokenizer_as_published(wide.opt)
    files = open_blip2(wide.pretrained_config)
    folder = tmp_path / "converted"
    folder.mkdir()
    merged = blip2_writing.MergedSource(files, {}, 1.0)
    blip2_writing.write_transformers_folder(files, merged, folder)
    again = open_blip2(ModelConfig(blip2=str(folder)))
    assert again.weight_digests() == files.weight_digests()
    assert again.ln_vision_eps == files.ln_vision_eps == 1e-5
    processor = Blip2Processor.from_pretrained(folder)
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    picture = Image.new("RGB", (40, 40), (200, 30, 60))
    inputs = processor(images=picture, text="Question: Which style is this? Short answer:", return_tensors="pt")
    assert model.config.image_token_index == len(tiny_tokenizer)
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 6
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    newline = tiny_tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert model.config.text_config.eos_token_id == newline[0]
    assert generated.shape[0] == 1


def test_stored_dtypes_stay_and_what_was_trained_is_fp32(
    lavis: LavisFolder, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """LAVIS's own mixture: ViT and OPT in fp16, the rest in fp32, here with its Q-Former in bf16 to tell it apart."""
    mixed = write_lavis_folder(tmp_path, tiny_tokenizer)
    for path, key, dtype in [
        (mixed.pth, "model", torch.bfloat16),
        (mixed.vit, None, torch.float16),
        (mixed.opt / "pytorch_model.bin", None, torch.float16),
    ]:
        content = torch.load(path, weights_only=True)
        state = content[key] if key else content
        state.update({name: tensor.to(dtype) for name, tensor in state.items() if tensor.is_floating_point()})
        torch.save(content, path)
    name = "qformer.encoder.layer.2.crossattention.attention.key.weight"
    trained = {name: torch.randn(128, 176)}
    files = open_blip2(mixed.pretrained_config)
    merged = blip2_writing.MergedSource(files, trained, 1.0)
    (tmp_path / "converted").mkdir()
    blip2_writing.write_transformers_folder(files, merged, tmp_path / "converted")
    blip2_writing.write_lavis_file(files, merged, tmp_path / "converted.pth")
    folder = open_blip2(ModelConfig(blip2=str(tmp_path / "converted")))
    file = open_blip2(ModelConfig(blip2=str(tmp_path / "converted.pth"), opt=str(mixed.opt)))
    for tensor_name in files.names():
        expected = trained.get(tensor_name, files.source.tensor(tensor_name))
        for other in (folder, file):
            found = other.source.tensor(tensor_name)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    assert {files.source.tensor(n).dtype for n in files.names()} == {torch.float16, torch.bfloat16}
    stock = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "converted")
    most = sum(files.source.tensor(n).numel() for n in files.names() if files.source.tensor(n).dtype == torch.float16)
    is_fp16 = 2 * most > sum(files.source.tensor(n).numel() for n in files.names())
    assert stock.dtype == (torch.float16 if is_fp16 else torch.bfloat16)


def test_what_is_wrong_is_told_and_nothing_is_left_behind(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder, monkeypatch: pytest.MonkeyPatch,
    tiny_blip2_folder: Path,
) -> None:  # fmt: skip
    run = train(run_training, tiny_config, of_lavis(lavis, "folder"))
    work = tmp_path / "work"
    work.mkdir()

    def fails(message: str, format: Any, output: Path, leave_out: Any = (), config: Config = run.config) -> None:
        before = sorted(work.rglob("*"))
        with pytest.raises(UserError, match=message):
            export(run.checkpoint, config, format, output, leave_out)
        assert sorted(work.rglob("*")) == before

    fails(r"is a \.safetensors file with --format adapter", "adapter", work / "adapter.bin")
    fails(r"is a \.pth file with --format lavis", "lavis", work / "adapter")
    fails("--leave-out vit: is for --format lavis", "transformers", work / "x", ["vit"])
    other = override_config(run.config, [f"model.blip2={tiny_blip2_folder}"])
    fails("was trained on other frozen weights", "transformers", work / "x", (), other)
    fails("was trained on other frozen weights", "lavis", work / "x.pth", (), other)
    for name, format in [("there", "transformers"), ("there.pth", "lavis"), ("there.safetensors", "adapter")]:
        (work / name).mkdir()
        fails("is there already; remove it or give another name", format, work / name)
    (work / "new.kv_prefix.safetensors").touch()
    fails(r"new\.kv_prefix\.safetensors is there already", "lavis", work / "new.pth")

    def dies(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "write_adapter", dies)
        before = sorted(work.rglob("*"))
        with pytest.raises(UserError, match=r"cannot be written \(no space left\); make room there"):
            export(run.checkpoint, run.config, "lavis", work / "late.pth")  # the model is there, its prefix is not
        assert sorted(work.rglob("*")) == before
    monkeypatch.setattr(blip2_writing, "write_safetensors", dies)
    monkeypatch.setattr(blip2_writing.torch, "save", dies)
    monkeypatch.setattr(export_module, "write_adapter", dies)
    before = sorted(work.rglob("*"))
    for name, format in [("a", "transformers"), ("b.pth", "lavis"), ("c.safetensors", "adapter")]:
        with pytest.raises(UserError, match=r"cannot be written \(no space left\); make room there"):
            export(run.checkpoint, run.config, format, work / name)
    assert sorted(work.rglob("*")) == before


def test_a_damaged_or_foreign_adapter_file_is_told(
    run_training: Train, tiny_config: Config, tmp_path: Path, lavis: LavisFolder
) -> None:
    run = train(run_training, tiny_config, of_lavis(lavis, "folder"))
    file = tmp_path / "adapter.safetensors"
    export(run.checkpoint, run.config, "adapter", file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="do not match their checksum"):
        load_exported(file)
    file.write_bytes(whole[:200])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        open_checkpoint(file)
    with pytest.raises(UserError, match="is no adapter of artkv export"):
        open_checkpoint(run.checkpoint.path / "adapter.safetensors")
    file.write_bytes(whole)
    with pytest.raises(UserError, match="is an adapter and holds no optimizer state; resume from a checkpoint's fold"):
        run_training([*of_lavis(lavis, "folder"), f"run.output_dir={tmp_path / 'new'}"], resume=str(file))
    config = override_config(open_checkpoint(file).config, [f"model.blip2={lavis.finetuned}", f"model.opt={lavis.opt}"])
    assert load_model(config, file)  # the same weights in another format
    with pytest.raises(UserError, match="was trained with efficientnet"):
        load_model(override_config(config, ["efficientnet.image_size=64"]), file)


@pytest.mark.parametrize("kind", ["lavis", "safetensors"])
def test_a_disk_that_fills_up_while_a_model_is_written_is_one_message(disk: Disk, kind: str) -> None:
    output = disk.folder / "model"
    tensors = {"weight": torch.zeros(2_000_000)}

    def write(path: Path) -> None:
        torch.save(tensors, path) if kind == "lavis" else save_tensors(tensors, path, {})

    with pytest.raises(UserError, match=r"--output .*/model: cannot be written \(No space left on device\); make room"):
        export_module._write(output, write)
    assert not list(disk.folder.iterdir())
