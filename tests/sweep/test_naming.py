"""What runs of a sweep are called."""

from typing import Any

import pytest
import yaml

from artkv.sweep.naming import folder_name, in_a_line, short_keys, told_settings

PALETTE = {"name": "palette", "checkpoint": "p.pth", "read": "pooled"}
BRUSHWORK = {"architecture": "vit_base_patch16_224.dino", "checkpoint": "b.pth", "read": "map", "size": 4}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([PALETTE, BRUSHWORK], "palette + vit_base_patch16_224 map 4"),
        ([BRUSHWORK], "vit_base_patch16_224 map 4"),
        (None, "null"),
        ([], "[]"),
        ("palette", "palette"),
        ([PALETTE, 3], "[{checkpoint: p.pth, name: palette, read: pooled}, 3]"),
    ],
)
def test_encoders_are_told_by_their_names_and_what_is_read(value: Any, told: str) -> None:
    assert told_settings({"art_encoders": value}) == {"art_encoders": told}


def test_the_short_form_is_told_unless_it_only_makes_room_for_a_list() -> None:
    assert told_settings({"efficientnet": None, "art_encoders": [PALETTE]}) == {"art_encoders": "palette"}
    assert told_settings({"efficientnet": None}) == {"efficientnet": "null"}


def test_a_folders_name_is_short_and_plain() -> None:
    settings = {"kv_modulation.injection": "film", "art_encoders": [PALETTE, BRUSHWORK]}
    name = folder_name(settings, short_keys([settings]))
    assert name == "injection=film,art_encoders=palette_+_vit_base_patch16_224_map_4"
    long = {"run.name": "x" * 300}
    assert len(folder_name(long, short_keys([long]))) < 100
    assert folder_name(long, short_keys([long])) != folder_name({"run.name": "x" * 301}, short_keys([long]))


@pytest.mark.parametrize("value", [0.0001, False, None, "null", "a: b", [1, {"é": "x"}], "x" * 500])
def test_a_line_is_read_back(value: Any) -> None:
    assert yaml.safe_load(in_a_line(value)) == value
