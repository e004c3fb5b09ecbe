"""An adapter in one file: what it says of itself, and what is told of a file that is damaged or another's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from artkv.config import Config
from artkv.errors import UserError
from artkv.run_folder.adapter_file import adapter_config, adapter_tensors, read_description, write_adapter

TENSORS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a": torch.ones(1)}


def written(path: Path, config: Config | None = None) -> Path:
    write_adapter(path, TENSORS, config or Config(), "frozen", 5, {"generator": {"num_heads": 4}})
    return path


def with_metadata(path: Path, **changes: str) -> Path:
    """The file `path` with other values in its metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
    save_file(load_file(path), path, metadata)
    return path


def test_it_says_what_it_takes_to_use_it(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"dataset": {"prompt": "Q: {question} A:"}, "training": {"seed": 3}, "frozen": {"feature_cache": "/cache"}}
    )
    path = written(tmp_path / "adapter.safetensors", config)
    description = read_description(path)
    assert (description["step"], description["frozen_hash"], description["generator"]) == (
        5,
        "frozen",
        {"num_heads": 4},
    )
    assert description["base_model"] == config.model.blip2
    read = adapter_config(path, description)
    assert (read.dataset.prompt, read.training.seed, read.frozen.feature_cache) == ("Q: {question} A:", 3, "auto")
    assert (read.model, read.efficientnet, read.kv_modulation) == (
        config.model, config.efficientnet, config.kv_modulation,
    )  # fmt: skip
    tensors = adapter_tensors(path, description["sha256"])
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())


def test_a_base_model_beside_it_is_found_wherever_they_are(tmp_path: Path) -> None:
    beside = Config.model_validate({"model": {"blip2": "./model.pth"}})
    path = written(tmp_path / "adapter.safetensors", beside)
    assert adapter_config(path, read_description(path)).model.blip2 == "./model.pth"
    (tmp_path / "model.pth").touch()
    assert adapter_config(path, read_description(path)).model.blip2 == str((tmp_path / "model.pth").resolve())


def test_what_is_damaged_or_anothers_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "adapter.safetensors")
    sha256 = read_description(path)["sha256"]
    with pytest.raises(UserError, match="has adapter format 9, this artkv reads 1; use the version of artkv that"):
        read_description(with_metadata(path, format_version="9"))
    other_model = with_metadata(written(path), model=json.dumps({"blip2": "x", "new_setting": 1}))
    with pytest.raises(
        UserError,
        match=r"(?s)use the artkv that wrote it, or export .*\n  model\.new_setting = 1: ",
    ):
        adapter_config(other_model, read_description(other_model))
    content = written(path).read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="its tensors do not match their checksum; the file is damaged, export it"):
        adapter_tensors(path, sha256)
    path.write_bytes(content[:20])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_description(path)
    save_file(TENSORS, path)
    with pytest.raises(UserError, match="is no adapter of artkv export"):
        read_description(path)
