"""What is said of an art encoder by what its file records, or by its name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from artkv.starting.art_encoder import ArtEncoder, art_encoder_at

RECORDED = {"architecture": "vit_tiny_patch16_224", "image_size": "224", "mean": "[0.5, 0.4, 0.3]", "std": "[1, 1, 1]"}


def test_what_the_file_records(tmp_path: Path) -> None:
    path = tmp_path / "efficientnet_b2.safetensors"
    save_file({"x": torch.zeros(1)}, path, RECORDED)
    mean, std = (0.5, 0.4, 0.3), (1.0, 1.0, 1.0)
    assert art_encoder_at(path) == ArtEncoder(path, "vit_tiny_patch16_224", 224, mean, std, False, True)


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "pt"},
        {name: text for name, text in RECORDED.items() if name != "image_size"},
        RECORDED | {"image_size": "-3"},
        RECORDED | {"image_size": "large"},
        RECORDED | {"mean": "{"},
        RECORDED | {"mean": "[1, 2]"},
        RECORDED | {"std": "[0, 0, 0]"},
        RECORDED | {"architecture": ""},
    ],
)
def test_what_is_no_record_of_artkvs_is_left_alone(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "efficientnet_b2.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata)
    assert art_encoder_at(path) == ArtEncoder(path, "efficientnet_b2")


def test_a_file_of_another_kind_or_none() -> None:
    assert art_encoder_at(Path("wikiart.pth")) == ArtEncoder(Path("wikiart.pth"), "efficientnet_b3")
    assert art_encoder_at(None) == ArtEncoder(None, "efficientnet_b3", 300)
