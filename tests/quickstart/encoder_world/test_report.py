"""What the sweep over encoders should show, and what is taken for a surprise in it."""

import copy
from pathlib import Path

import pytest

from artkv.config import load_config
from artkv.errors import UserError
from artkv.quickstart.encoder_world.report import find_surprises
from artkv.quickstart.encoder_world.settings import COMBINATIONS, EncoderQuickstart, check_given
from artkv.sweep.plan import read_sweep

AS_MADE = {
    "style pooled": {"left": 0.5, "right": 0.5, "school": 0.33},
    "style map": {"left": 0.95, "right": 0.95, "school": 0.33},
    "harmony pooled": {"left": 0.17, "right": 0.17, "school": 0.33},
    "style map + harmony, concat": {"left": 0.95, "right": 0.95, "school": 0.95},
    "style map + harmony, decoupled": {"left": 0.52, "right": 0.48, "school": 0.95},
    "control": {"left": 0.17, "right": 0.17, "school": 0.33},
}


def test_what_the_world_was_made_to_show_is_no_surprise() -> None:
    assert find_surprises(AS_MADE) == []


@pytest.mark.parametrize(
    ("combination", "kind", "value", "message"),
    [
        ("style pooled", "left", 0.7, "left with style pooled is 0.700, expected at most 0.6"),
        ("style map", "right", 0.8, "right with style map is 0.800, expected at least 0.9"),
        ("style map", "school", 0.6, "school with style map is 0.600, expected at most 0.45"),
        ("harmony pooled", "school", 0.5, "school with harmony pooled is 0.500"),
        ("style map + harmony, decoupled", "school", 0.5, "expected at least 0.9"),
        ("control", "left", 0.7, "left with control is 0.700"),
    ],
)
def test_a_surprise_names_combination_and_question(combination: str, kind: str, value: float, message: str) -> None:
    table = copy.deepcopy(AS_MADE)
    table[combination][kind] = value
    (surprise,) = find_surprises(table)
    assert message in surprise


def test_the_sweep_has_the_six_combinations_and_the_cache_every_encoder(tmp_path: Path) -> None:
    settings = EncoderQuickstart(tmp_path, seed=7)
    settings.check()
    settings.write_files()
    settings.check()
    sweep = read_sweep(settings.sweep_path)
    assert len(sweep.runs) == len(COMBINATIONS) == 6
    views = set()
    cached = {e.model_dump_json() for e in load_config(settings.config_path).art_encoders or ()}
    assert len(cached) == 3
    for run, combination in zip(sweep.runs, COMBINATIONS, strict=True):
        config = run.config
        assert config.training.seed == 7
        assert config.kv_modulation.enabled == bool(combination.encoders)
        if combination.encoders:
            assert config.kv_modulation.injection == combination.injection
            assert config.art_encoders is not None
            assert [(e.source_name, e.read) for e in config.art_encoders] == [
                (f"{name}_{read}", read) for name, read in combination.encoders
            ]
            # What `artkv cache` of the common config computes is all that a run needs.
            assert {e.model_dump_json() for e in config.art_encoders} <= cached
            views |= {(e.source_name, e.std) for e in config.art_encoders}
    # Each is blind to the other's channels, and is the same in all runs.
    assert views == {
        ("brushwork_pooled", (1000.0, 0.224, 1000.0)),
        ("brushwork_map", (1000.0, 0.224, 1000.0)),
        ("harmony_pooled", (0.229, 1000.0, 0.225)),
    }
    with pytest.raises(UserError, match="another folder"):
        EncoderQuickstart(tmp_path, seed=8).check()


def test_options_without_a_meaning_are_refused() -> None:
    check_given(None, [])
    with pytest.raises(UserError, match="--ranks: is not for --world encoders"):
        check_given(2, [])
    with pytest.raises(UserError, match="--set: is not for --world encoders"):
        check_given(None, ["training.num_epochs=1"])
