"""`art_encoders`, its short form, and how single entries are set."""

from pathlib import Path

import pytest

from artkv.config import Config, dump_config, load_config
from artkv.errors import UserError


def load(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "my.yaml"
    path.write_text(text)
    config = load_config(path, overrides)
    path.write_text(dump_config(config))
    assert load_config(path) == config
    return config


def test_the_short_form_is_a_list_of_one(tmp_path: Path) -> None:
    (one,) = load(
        tmp_path, "efficientnet: {architecture: efficientnet_b0, checkpoint: b0.pth, image_size: 224}"
    ).encoders
    (other,) = load(
        tmp_path, "art_encoders: [{architecture: efficientnet_b0, checkpoint: b0.pth, image_size: 224}]"
    ).encoders
    assert one.model_dump() == other.model_dump()
    assert (one.place, other.place) == ("efficientnet", "art_encoders.0")
    assert one.checkpoint == tmp_path / "b0.pth"
    (default,) = load(tmp_path, "{}").encoders
    assert (default.source_name, default.read, default.view, default.size) == (
        "efficientnet_b3",
        "pooled",
        "centre",
        None,
    )


def test_names_are_the_architectures_without_their_tags(tmp_path: Path) -> None:
    text = "art_encoders: [{architecture: vit_tiny_patch16_224.augreg_in21k}, {name: b}, {name: c, read: map, size: 2}]"
    config = load(tmp_path, text)
    assert [encoder.source_name for encoder in config.encoders] == ["vit_tiny_patch16_224", "b", "c"]
    assert config.efficientnet is None
    assert config.used_encoders == config.encoders
    assert load(tmp_path, text, "kv_modulation.enabled=false").used_encoders == ()
    assert load(tmp_path, "art_encoders: []", "kv_modulation.enabled=false").encoders == ()


def test_entries_are_set_by_their_number_and_lists_as_a_whole(tmp_path: Path) -> None:
    text = "art_encoders: [{name: a, checkpoint: a.pth}, {name: b}]"
    config = load(
        tmp_path, text, "art_encoders.1.read=map", "art_encoders.1.size=3", "art_encoders.1.checkpoint=/b #1.pth"
    )
    first, second = config.encoders
    assert (first.checkpoint, first.read) == (tmp_path / "a.pth", "pooled")
    assert (second.checkpoint, second.read, second.size) == (Path("/b #1.pth"), "map", 3)
    (whole,) = load(tmp_path, text, "art_encoders=[{name: c}]", "art_encoders.0.image_size=64").encoders
    assert (whole.source_name, whole.image_size) == ("c", 64)
    short = "efficientnet: {checkpoint: a.pth}"
    assert load(tmp_path, short, "efficientnet=null", "art_encoders=[{name: c}]").encoders[0].source_name == "c"
    with pytest.raises(UserError, match=r"both are given; move it into the list, or leave it out \(efficientnet: null"):
        load(tmp_path, short, "art_encoders=[{name: c}]")
