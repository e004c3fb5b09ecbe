"""What is chosen for a device: at BLIP2-OPT-2.7b's true shapes, and by the settings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artkv.config import Config, load_config, override_config, recipe_path
from artkv.config.editing import yaml_scalar
from artkv.planning.batch_shape import BatchShape
from artkv.planning.device import Device
from artkv.planning.gpus import GIB, find_gpu
from artkv.planning.modes import Mode
from artkv.planning.placement import (
    MARGIN_FRACTION,
    STREAMING_MUST_GAIN,
    Use,
    batch_size_that_keeps_all,
    choose,
    chosen_settings,
    is_settled,
    kept_setting,
    place,
    place_unasked,
    usable_bytes,
)
from artkv.planning.prediction import Predictor

FOLDER = Path("/cache")
GPU_OF_GIB = {8: "RTX 4060 8GB", 12: "RTX 4070", 24: "RTX 4090", 80: "A100 80GB"}

_made: dict[tuple[int, bool], Predictor] = {}


def true_size(batch_size: int, gib: int, trains: bool = True) -> Predictor:
    """BLIP2-OPT-2.7b by the recipe, each question of 32 tokens with a painting of its own; made once."""
    key = (batch_size, trains)
    if key not in _made:
        config = load_config(recipe_path("artquest.yaml"), [f"training.batch_size={batch_size}"])
        batch = BatchShape(batch_size, batch_size, 32, is_packed=True)
        _made[key] = Predictor.of(config, torch.bfloat16, batch, 1, find_gpu("A100 80GB"), trains)
    return replace(_made[key], gpu=find_gpu(GPU_OF_GIB[gib]))


def device(gib: float) -> Device:
    return Device("fake", round(gib * GIB), round(gib * GIB))


# The table of docs/planning.md: all of the memory free, features cached.
@pytest.mark.parametrize(
    ("gib", "batch_size", "opt", "resident_blocks", "kept"),
    [
        (8, 8, "resident", 0, False),
        (8, 32, "stream", 14, "2887MiB"),
        (8, 96, "stream", 2, "3035MiB"),
        (12, 8, "resident", 0, False),
        (12, 32, "resident", 0, False),
        (12, 96, "stream", 3, "6885MiB"),
        (24, 8, "resident", 0, False),
        (24, 32, "resident", 0, False),
        (24, 96, "resident", 0, False),
        (80, 8, "resident", 0, False),
        (80, 32, "resident", 0, False),
        (80, 96, "resident", 0, False),
    ],
)
def test_what_is_chosen_at_the_true_size(
    gib: int, batch_size: int, opt: str, resident_blocks: int, kept: bool | str
) -> None:
    predictor = true_size(batch_size, gib)
    placement = place(predictor, device(gib), FOLDER, Use(trains=True))
    frozen, training = placement.config.frozen, placement.config.training
    assert (frozen.opt, frozen.resident_blocks, training.activation_checkpointing) == (opt, resident_blocks, kept)
    assert (frozen.vit, frozen.feature_cache) == ("resident", FOLDER)  # 1.8 GiB while the cache is filled
    assert is_settled(placement.config)
    assert placement.choice is not None
    assert placement.choice.prediction.device.total_bytes <= usable_bytes(device(gib).free_bytes)
    # As settings, which `artkv plan` prints, it is the same way.
    settings = chosen_settings(predictor, placement.choice)
    told = override_config(predictor.config, [f"{key}={yaml_scalar(value)}" for key, value in settings.items()])
    again = place(replace(predictor, config=told), device(gib), FOLDER, Use(trains=True))
    assert again.config == placement.config


@pytest.mark.parametrize(
    ("gib", "batch_size", "words"),
    [
        (
            80,
            8,
            "OPT resident, all activations kept: 7.0 of 80.0 GiB free; training.batch_size 8: up to about 552 would",
        ),
        (
            8,
            32,
            "OPT streamed through 2 slots with 14 of 32 blocks resident, activations of 29 of 32 blocks kept: 7.1 ",
        ),
        (
            12,
            96,
            "OPT streamed through 2 slots with 3 of 32 blocks resident, activations of 23 of 32 blocks kept: 10.7 ",
        ),
    ],
)
def test_the_line_says_what_was_chosen_and_what_would_be_faster(gib: int, batch_size: int, words: str) -> None:
    note = place(true_size(batch_size, gib), device(gib), FOLDER, Use(trains=True)).note
    assert note is not None
    assert note.startswith(words)


def test_nothing_streams_where_the_host_has_no_memory_for_it() -> None:
    predictor, roomy = true_size(32, 8), replace(device(8), host_bytes=6 * GIB)
    assert place(predictor, roomy, FOLDER, Use(trains=True)).config.frozen.opt == "stream"
    narrow = replace(device(8), host_bytes=3 * GIB)
    placement = place(predictor, narrow, FOLDER, Use(trains=True))
    assert placement.config.frozen.opt == "resident"
    assert placement.note is not None
    assert "; the host has 3.0 GiB free, and 4.7 are needed to stream OPT" in placement.note
    # What is set is tried, and the host's memory is told where it is taken.
    told = replace(predictor, config=override_config(predictor.config, ["frozen.opt=stream"]))
    assert place(told, narrow, FOLDER, Use(trains=True)).config.frozen.opt == "stream"


def test_the_vit_streams_where_it_does_not_fit_beside_the_rest() -> None:
    predictor = true_size(8, 8)
    while_filling = place(predictor, device(2.5), FOLDER, Use(trains=True)).config.frozen
    assert (while_filling.vit, while_filling.feature_cache) == ("stream", FOLDER)
    without_cache = place(predictor, device(4), None, Use(trains=True)).config.frozen
    assert (without_cache.opt, without_cache.vit, without_cache.feature_cache) == ("stream", "stream", None)


def test_answering_keeps_no_activations_and_takes_less() -> None:
    answering = place(true_size(8, 8, trains=False), device(8), FOLDER, Use())
    assert answering.config.frozen.opt == "resident"
    assert answering.note == "OPT resident: 6.5 of 8.0 GiB free"
    assert place(true_size(8, 8, trains=False), device(5), FOLDER, Use()).config.frozen.opt == "stream"


def test_where_nothing_fits_the_smallest_is_tried_and_told() -> None:
    placement = place(true_size(8, 8), device(2), FOLDER, Use(trains=True))
    assert placement.config.frozen.opt == "stream"
    assert placement.config.training.activation_checkpointing is True
    assert placement.note is not None
    assert "GiB more than may be used: lower training.batch_size" in placement.note


def test_a_limit_leads_to_a_smaller_way() -> None:
    predictor = true_size(32, 12)
    first = place(predictor, device(12), FOLDER, Use(trains=True))
    assert first.choice is not None
    limit = int(0.9 * first.choice.prediction.device.total_bytes)
    second = place(predictor, device(12), FOLDER, Use(trains=True, limit_bytes=limit))
    assert second.choice is not None
    assert second.choice.prediction.device.total_bytes <= limit
    assert second.config != first.config


@pytest.mark.parametrize(
    ("settings", "opt", "kept"),
    [
        (["frozen.opt=stream"], "stream", False),
        (["frozen.opt=int8"], "int8", False),
        (["frozen.opt=resident", "training.activation_checkpointing=true"], "resident", True),
        (["training.activation_checkpointing=100MiB"], "resident", "100MiB"),
    ],
)
def test_what_is_set_is_obeyed(settings: list[str], opt: str, kept: bool | str) -> None:
    predictor = true_size(8, 80)
    chosen = replace(predictor, config=override_config(predictor.config, settings))
    config = place(chosen, device(80), FOLDER, Use(trains=True)).config
    assert (config.frozen.opt, config.training.activation_checkpointing) == (opt, kept)


def test_a_size_keeps_as_many_blocks_as_it_was_made_for() -> None:
    predictor = true_size(8, 8)
    for opt in ("resident", "stream", "int8"):
        for count in (0, 1, 7, 31, None):
            mode = Mode(opt, count)  # type: ignore[arg-type]
            setting = kept_setting(predictor, mode)
            training = override_config(
                predictor.config,
                [f"training.activation_checkpointing={str(setting).lower() if isinstance(setting, bool) else setting}"],
            ).training
            assert predictor.kept_blocks(mode, training.kept_activation_bytes) == count


def test_streaming_is_chosen_only_for_a_gain() -> None:
    """Rates are assumed, and it takes host memory."""
    predictor = true_size(8, 8)
    choice = choose(predictor, usable_bytes(8 * GIB), is_cached=True)
    assert choice.prediction.mode.opt == "resident"
    streamed = predictor.predict(Mode("stream", slots=2, resident_blocks=20), "cached")
    assert streamed.device.total_bytes < usable_bytes(8 * GIB)
    assert streamed.step_seconds <= choice.prediction.step_seconds < STREAMING_MUST_GAIN * streamed.step_seconds
    # Where resident blocks would recompute more than that, it is: here with 32 questions.
    tight = choose(true_size(32, 8), usable_bytes(8 * GIB), is_cached=True)
    assert tight.prediction.mode.opt == "stream"


def test_the_batch_that_fills_a_device_does_fill_it() -> None:
    found = true_size(32, 24)
    choice = choose(found, usable_bytes(24 * GIB), is_cached=True)
    questions = batch_size_that_keeps_all(found, choice.prediction, usable_bytes(24 * GIB))
    largest = choose(true_size(questions, 24), usable_bytes(24 * GIB), is_cached=True).prediction
    assert largest.mode == Mode("resident")
    # A tenth is in proportion: rows are packed by how they fit, and the hint is rounded down.
    assert largest.device.total_bytes > 0.9 * usable_bytes(24 * GIB)


def test_without_a_device_everything_is_resident(settings: Callable[..., Config]) -> None:
    config = settings(frozen={"opt": "auto", "vit": "auto"}, training={"activation_checkpointing": "auto"})
    placed = place_unasked(config, None, Use(trains=True))
    assert placed.note == "OPT resident on the CPU, all activations kept"
    assert (placed.config.frozen.opt, placed.config.frozen.vit) == ("resident", "resident")
    assert placed.config.training.kept_activation_bytes is None
    assert place_unasked(config, None, Use()).note == "OPT resident on the CPU"
    set_by_hand = settings(frozen={"opt": "stream"}, training={"activation_checkpointing": True})
    assert place_unasked(set_by_hand, FOLDER, Use(trains=True)).config.frozen.opt == "stream"
    assert place_unasked(set_by_hand, FOLDER, Use(trains=True)).config.training.kept_activation_bytes == 0
    assert place_unasked(set_by_hand, FOLDER, Use(trains=True)).note is None


def test_a_tenth_is_left_free() -> None:
    assert usable_bytes(100) == 100 * (1 - MARGIN_FRACTION)
