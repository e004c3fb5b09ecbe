"""What is read from a checkpoint; tests/models/test_efficientnet.py loads every form into a network."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from artkv.errors import UserError
from artkv.models.files.efficientnet_files import read_efficientnet_file, timm_name


@pytest.mark.parametrize("size", range(8))
def test_every_torchvision_key_has_the_timm_key_of_its_shape(size: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"efficientnet_b{size}")().state_dict()
        ours = timm.create_model(f"efficientnet_b{size}", num_classes=0).state_dict()
    mapped = {timm_name(name): tensor.shape for name, tensor in theirs.items() if not name.startswith("classifier.")}
    assert mapped == {name: tensor.shape for name, tensor in ours.items()}


def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"model": torchvision.models.efficientnet_b0(num_classes=2)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"needs torchvision\.models\.efficientnet.*torch\.save\(model\.state_dict"):
        read_efficientnet_file(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_conv_stem.weight": torch.ones(2)}, "neither timm's layout"),
        ({"state_dict": 3, "epoch": 1}, "not a state dict of named tensors"),
        ({}, "not a state dict of named tensors"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_file_of_something_else(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        read_efficientnet_file(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a readable"),
        ("<html>404</html>", "is not a readable"),
        ("version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS, not the file\\); run git lfs pull"),
    ],
)
def test_a_file_that_is_no_checkpoint(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_efficientnet_file(tmp_path / name)
