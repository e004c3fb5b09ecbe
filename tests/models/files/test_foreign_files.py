"""Bytes flipped and cut anywhere: every file of a model is read or refused with a `UserError`, and with no other."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerFast

from artkv.config import ModelConfig
from artkv.errors import UserError
from artkv.models.files.blip2_files import open_blip2
from artkv.models.files.efficientnet_files import read_efficientnet_file
from artkv.models.files.foreign_files import reason_of, told_as
from artkv.models.files.weight_files import open_weights
from tests.models.lavis_writing import write_lavis_folder


def damaged(content: bytes, number: int) -> list[bytes]:
    """So many variants: cut, with some bytes changed, with a piece repeated or taken out; alike in each run."""
    rng = random.Random(0)
    variants = []
    for kind in range(number):
        place = rng.randrange(len(content))
        # Formats have their structure at the ends.
        place = rng.choice([place, min(place, rng.randrange(1, 400)), max(place, len(content) - rng.randrange(1, 400))])
        if kind % 4 == 0:
            variants.append(content[:place])
        elif kind % 4 == 1:
            variants.append(content[:place] + content[place + rng.randrange(1, 30) :])
        elif kind % 4 == 2:
            variants.append(content[:place] + content[max(0, place - 20) : place] + content[place:])
        else:
            changed = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                changed[min(place + rng.randrange(8), len(changed) - 1)] = rng.randrange(256)
            variants.append(bytes(changed))
    return variants


def read_all(path: Path, number: int, read: Callable[[], object]) -> int:
    """Reads so many damaged versions of a file; returns how many were refused."""
    whole = path.read_bytes()
    refused = 0
    for variant in damaged(whole, number):
        path.write_bytes(variant)
        told = None
        try:
            read()
        except UserError as error:
            told = str(error)
        if told is not None:
            refused += 1
            assert "; " in told
            assert len(told) < 5000
            assert not any(advice in told for advice in ("weights_only", "trust_remote_code"))
    path.write_bytes(whole)
    return refused


@pytest.fixture
def folder(tiny_blip2_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_blip2_folder, tmp_path / "blip2"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "model-00001-of-00001.safetensors", framework="pt") as file:
        names = list(file.keys())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_of_a_file_and_an_index_the_file_is_read_as_transformers_does(sharded: Path, tiny_blip2_folder: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    shutil.copy(tiny_blip2_folder / "model.safetensors", sharded)
    names = open_weights(sharded, "model.blip2").names()
    assert set(names) == set(open_weights(tiny_blip2_folder, "model.blip2").names())
    Blip2ForConditionalGeneration.from_pretrained(sharded)  # which would ask for gone.safetensors


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.safetensors", 60), ("config.json", 40), ("preprocessor_config.json", 40), ("tokenizer_config.json", 40),
        ("tokenizer.json", 40), ("generation_config.json", 20),
    ],
)  # fmt: skip
def test_files_of_a_transformers_folder(folder: Path, name: str, number: int) -> None:
    refused = read_all(folder / name, number, lambda: open_blip2(ModelConfig(blip2=str(folder))).weight_digests())
    assert refused > number // 4
    assert open_blip2(ModelConfig(blip2=str(folder))).weight_digests()


def test_an_index(sharded: Path) -> None:
    read = lambda: open_blip2(ModelConfig(blip2=str(sharded)))  # noqa: E731
    assert read_all(sharded / "model.safetensors.index.json", 60, read) > 15
    read()


def test_files_of_lavis(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    lavis = write_lavis_folder(tmp_path, tiny_tokenizer)
    read = lambda: open_blip2(lavis.pretrained_config).weight_digests()  # noqa: E731
    for path in (lavis.pth, lavis.vit, lavis.opt / "pytorch_model.bin"):
        assert read_all(path, 16, read) > 4
    read()


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_of_an_efficientnet(tmp_path: Path, is_zip: bool) -> None:
    state = {"conv_stem.weight": torch.randn(4, 3, 3, 3), "blocks.0.0.bn1.num_batches_tracked": torch.tensor(3)}
    path = tmp_path / "art.pth"
    torch.save({"model": state, "epoch": 3}, path, _use_new_zipfile_serialization=is_zip)
    assert read_all(path, 400, lambda: read_efficientnet_file(path)) > 100
    read_efficientnet_file(path)


def test_a_panic_is_told_and_an_interrupt_is_not() -> None:
    class PanicException(BaseException):
        """As pyo3's."""

    with (
        pytest.raises(UserError, match=r"file: cannot be read \(index out of bounds\); mend it"),
        told_as("file", "mend it"),
    ):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), told_as("file", "mend it"):
        raise KeyboardInterrupt


def test_a_librarys_advice_to_trust_a_file_is_left_out() -> None:
    advice = ValueError(
        "It is broken. Set `weights_only=False` if you trust it.\nPass trust_remote_code=True. Read on."
    )
    assert reason_of(advice) == "It is broken. Read on."
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(KeyError("vocab")) == "the key 'vocab' is missing or unknown"
    assert len(reason_of(ValueError("x" * 5000))) < 400
