"""What this user may not read is told as that, whatever it is, and by the remedy of permissions."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import artkv.cli as cli
from artkv.config import load_config
from artkv.distributed import World
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.training.run import train
from tests.bad_inputs.output_cases import evaluated

# linux/capability.h: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, and the version of the calls.
_OVERRIDE, _READ_SEARCH, _VERSION = 1, 2, 0x20080522


@pytest.fixture
def trained(tiny_world: Path, tmp_path: Path, one_process: World) -> Path:
    output = tmp_path / "run"
    train(
        load_config(tiny_world / "config.yaml", [f"run.output_dir={output}", "training.num_epochs=1"]),
        None,
        one_process,
    )
    return output


@contextmanager
def as_anybody() -> Iterator[None]:
    """Without root's right to read what its mode forbids, in this thread and those that it starts."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(_VERSION, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    assert libc.capget(header, held) == 0
    lowered = (ctypes.c_uint32 * 6)(*held)
    lowered[0] &= ~(1 << _OVERRIDE | 1 << _READ_SEARCH)
    assert libc.capset(header, lowered) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


def told(arguments: list[str], forbidden: Path, capsys: pytest.CaptureFixture[str]) -> str:
    mode = forbidden.stat().st_mode
    forbidden.chmod(0)
    try:
        with as_anybody():
            assert not os.access(forbidden, os.R_OK, effective_ids=True)
            code = cli.main(arguments)
    finally:
        forbidden.chmod(mode)
    message = capsys.readouterr().err
    assert code == 1, message
    return message


# Of a folder that is listed. What lies in the folder of a model is told by its own path.
MODES = {"images": "u+rx"}


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml", "train.csv", "images", "blip2", "blip2/config.json", "blip2/model.safetensors",
        "blip2/tokenizer.json", "blip2/preprocessor_config.json", "efficientnet.safetensors", "ds.json",
    ],
)  # fmt: skip
def test_an_input_that_may_not_be_read_is_told_so(
    name: str, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    copied = Path(shutil.copytree(tiny_world, tmp_path / "w"))
    (copied / "ds.json").write_text("{}")
    more = ["--set", f"training.deepspeed={copied / 'ds.json'}"] if name == "ds.json" else []
    output = ["--set", f"run.output_dir={tmp_path / 'run'}"]
    message = told(["check", "--config", str(copied / "config.yaml"), *output, *more], copied / name, capsys)
    assert "Permission denied" in message
    assert f"give this user permission to read it (chmod {MODES.get(name, 'u+r')} {copied / name}" in message
    assert "put it back" not in message


def test_a_table_that_may_not_be_read_is_not_left_out_by_init(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_world, tmp_path / "w")
    message = told(["init", "w"], tmp_path / "w" / "train.csv", capsys)
    assert "w/train.csv: cannot be read (Permission denied); give this user permission" in message
    assert not (tmp_path / "my.yaml").exists()


def test_a_style_that_may_not_be_listed_is_not_one_without_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for style in ("Pop", "Op"):
        (tmp_path / "data" / style).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / "data" / style / f"{number}.png")
    arguments = ["art-encoder", "--data", str(tmp_path / "data"), "--architecture", "test_efficientnet"]
    arguments += ["--device", "cpu", "--output-dir", str(tmp_path / "out")]
    message = told(arguments, tmp_path / "data" / "Pop", capsys)
    assert f"{tmp_path}/data/Pop: cannot be listed (Permission denied); give this user permission" in message
    assert "has no pictures" not in message


@pytest.fixture(scope="module")
def evaluated_run(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory, one_process: World) -> Path:
    """A folder with a run that has answered, and its cache of features."""
    folder = tmp_path_factory.mktemp("trained")
    sets = [f"run.output_dir={folder / 'run'}", "training.num_epochs=1", f"frozen.feature_cache={folder / 'cache'}"]
    train(load_config(tiny_world / "config.yaml", sets), None, one_process)
    evaluated(folder / "run")
    return folder


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("run", "status"), ("run/status.json", "status"), ("run/checkpoints", "status"),
        ("run/metrics.jsonl", "status"),
        ("run", "report"), ("run/status.json", "report"), ("run/environment.json", "report"),
        ("run/eval/val-on/predictions.csv", "report"), ("run/eval/val-on/metrics.json", "report"),
        ("run/eval/val-on", "report"), ("run/eval", "report"), ("run/metrics.jsonl", "report"),
        ("run/eval/val-on/predictions.csv", "compare"), ("run/eval/val-off/metrics.json", "compare"),
        ("run/eval", "compare"), ("run/eval/val-off", "compare"), ("run", "compare"), ("run/config.yaml", "compare"),
        ("run", "export"), ("run/checkpoints", "export"), ("run/checkpoints/step_00000009", "export"),

        ("adapter.safetensors", "export it"),
        ("run/metrics.jsonl", "train"), ("run/checkpoints", "train"),

        ("cache", "cache"), ("cache/cache.json", "cache"), ("cache/*", "cache"), ("cache/*/shards", "cache"),
        ("cache/*/shards/*", "cache --verify"), ("cache/*/shards", "cache --verify"),
    ],
)  # fmt: skip
def test_a_file_of_a_run_that_may_not_be_read_is_told_so(
    name: str, verb: str, evaluated_run: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, in_process: None,
) -> None:  # fmt: skip
    copied = Path(shutil.copytree(evaluated_run, tmp_path / "copy", symlinks=True))
    monkeypatch.chdir(copied)
    run = copied / "run"
    config = ["--config", str(tiny_world / "config.yaml"), "--set", f"frozen.feature_cache={copied / 'cache'}"]
    config += ["--set", f"run.output_dir={run}"]
    export = ["export", "--format", "adapter", "--output", str(tmp_path / "new.safetensors"), "--checkpoint"]
    if name == "adapter.safetensors":
        assert cli.main([*export[:4], str(copied / name), *export[5:], str(run)]) == 0
    forbidden = next(path for path in sorted(copied.glob(name)) if path.suffix != ".json" or "*" not in name)
    arguments = {
        "export": [*export, str(run)], "export it": [*export, str(forbidden)],
        "train": ["train", *config, "--resume", "auto", "--epochs", "2"],
        "cache": ["cache", *config], "cache --verify": ["cache", *config, "--verify"],
    }.get(verb, [verb, str(run)])  # fmt: skip
    capsys.readouterr()
    message = told(arguments, forbidden, capsys)
    assert "Permission denied" in message, message
    assert "chmod" in message, message
    assert str(forbidden.relative_to(copied)) in message, message
    assert "chmod u+r" in message or "give this user permission" in message, message


@pytest.mark.parametrize("name", ["checkpoint.json", "adapter.safetensors", "."])
def test_a_checkpoint_that_may_not_be_read_is_not_damaged(
    name: str, trained: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    forbidden = (trained / "best").resolve() / name
    arguments = ["ask", "--checkpoint", str(trained / "best"), str(tiny_world / "images" / "val0.png"), "What?"]
    message = told(arguments, forbidden, capsys)
    assert f"cannot be read (Permission denied); give this user permission to read it (chmod u+r {trained}" in message
    for wrong in ("damaged", "no checkpoint there", "give another"):
        assert wrong not in message


def test_an_exported_adapter_that_may_not_be_read_is_told_so(
    trained: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    adapter = tmp_path / "adapter.safetensors"
    assert cli.main(["export", "--checkpoint", str(trained), "--format", "adapter", "--output", str(adapter)]) == 0
    arguments = ["ask", "--checkpoint", str(adapter), str(tiny_world / "images" / "val0.png"), "What?"]
    message = told(arguments, adapter, capsys)
    assert f"{adapter}: cannot be read (Permission denied); give this user permission to read it" in message


def test_optimizer_state_that_may_not_be_read_is_told_so(
    trained: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    newest = open_checkpoint(trained).path
    arguments = [
        "train",
        "--config",
        str(trained / "config.yaml"),
        "--resume",
        str(newest),
        "--set",
        "training.num_epochs=2",
    ]
    message = told(arguments, newest / "optimizer.safetensors", capsys)
    assert "optimizer.safetensors cannot be read (Permission denied); give this user permission" in message
