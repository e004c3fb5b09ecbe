"""What a validation logs beside the scores, and of which paintings."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artkv.config import Config, override_config
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.attention import attention_of
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.session import Session
from artkv.training.validation import attention_metrics, one_row_a_painting, stratified_rows
from tests.training_runs import Train, final_bytes


def table(types: list[str], paintings: list[int]) -> Any:
    class Rows(SimpleNamespace):
        def __len__(self) -> int:
            return len(types)

    return Rows(question_types=types, painting_of_row=np.array(paintings))


def test_samples_are_of_all_types_and_of_different_paintings() -> None:
    """Every painting has a question of every type, in the same order: the first eight rows would be two paintings."""
    kinds = ["style", "colour", "subject", "time"]
    all_alike = table(kinds * 20, [row // 4 for row in range(80)])
    chosen = stratified_rows(all_alike, 8)
    assert sorted(kinds * 2) == sorted(all_alike.question_types[row] for row in chosen)
    paintings = [int(all_alike.painting_of_row[row]) for row in chosen]
    assert len(set(paintings)) == 8
    assert max(paintings) > 10 > min(paintings)
    assert stratified_rows(all_alike, 8) == chosen


def test_a_rare_type_is_there_and_few_rows_are_all_taken() -> None:
    rare = table(["common"] * 50 + ["rare"], [*range(50), 3])
    assert 50 in stratified_rows(rare, 4)
    assert sorted(stratified_rows(table(["a", "b", "a"], [0, 0, 0]), 8)) == [0, 1, 2]


def test_each_painting_looked_at_is_another_one() -> None:
    many = table(["a"] * 60, [row // 3 for row in range(60)])
    rows = one_row_a_painting(many, 10, first=[4, 40])
    assert rows[:2] == [4, 40]
    assert len({int(many.painting_of_row[row]) for row in rows}) == len(rows) == 10
    assert len(one_row_a_painting(many, 99, first=[4])) == 20


def test_a_run_logs_attention_before_its_first_step_and_after_each_epoch(
    run_training: Train, tiny_config: Config, one_process: World
) -> None:
    settings = ["kv_modulation.gate=zero", "run.keep_checkpoints=9"]
    run_training(settings)
    run_dir = tiny_config.run.output_dir
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0, "tensors": 0, "histograms": 0}).Reload()
    masses = events.Scalars("attention/mass")
    assert [event.step for event in masses] == [0, 9, 18]
    assert masses[0].value == 0.0  # a gate of zero is stock BLIP-2
    assert events.Scalars("attention/gate")[0].value == 0.0

    # Of a checkpoint, as `attention_of` says; 5 paintings, of which all are looked at.
    session = Session(override_config(tiny_config, settings), one_process, ["val"])
    session.load(open_checkpoint(run_dir / "checkpoints" / "step_00000009"))
    rows = one_row_a_painting(session.questions["val"].table, 64, [])
    expected = attention_metrics(session, attention_of(session.model, session.questions["val"], rows))
    assert abs(expected["attention/mass"]) > 1e-5
    assert {"attention/mass/layer_0", "attention/mass/layer_1", "attention/prefix_key_norm"} < expected.keys()
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (logged,) = (record for record in records if record["kind"] == "validation" and record["step"] == 9)
    for name, value in expected.items():
        # fp32; paintings are summed in another order. The worst seen is 2e-6 relative.
        assert logged[name] == pytest.approx(value, rel=2e-5, abs=1e-9), name
        assert events.Scalars(name)[1].value == pytest.approx(value, rel=2e-5, abs=1e-9)
    assert len(events.Histograms("attention/mass_of_heads")) == 3
    drawn = events.Images("attention/mass_of_layers_and_heads")
    assert [one.step for one in drawn] == [one.step for one in events.Histograms("attention/mass_of_heads")]

    works = [tag for tag in events.Tags()["images"] if tag.startswith("works/")]
    assert len(works) == 8
    drawn = Image.open(io.BytesIO(events.Images(works[0])[0].encoded_image_string))
    assert drawn.width == 3 * 448  # the painting, with the prefix on, and off


def test_groups_of_tags_begin_with_what_is_learnt_and_end_with_pictures(
    run_training: Train, tiny_config: Config
) -> None:
    run_training(["training.num_epochs=1"])
    tags = EventAccumulator(str(tiny_config.run.output_dir)).Reload().Tags()
    groups = sorted({tag.split("/")[0] for tag in [*tags["scalars"], *tags["images"]]})
    assert groups == ["attention", "grad_norm", "train", "update_to_weight", "validation", "vitals", "works"]
    assert {"vitals/step_seconds", "vitals/peak_host_gib", "vitals/skipped_steps"} <= set(tags["scalars"])
    assert "vitals/peak_device_gib" not in tags["scalars"]  # there is no device


def test_the_control_logs_no_attention_on_a_prefix(run_training: Train, tiny_config: Config) -> None:
    run_training(["kv_modulation.enabled=false", "training.num_epochs=1"])
    events = EventAccumulator(str(tiny_config.run.output_dir)).Reload()
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("attention/")]
    drawn = Image.open(io.BytesIO(events.Images("works/0")[0].encoded_image_string))
    assert drawn.width == 2 * 448


def test_a_picture_that_is_gone_is_missing_in_tensorboard_and_ends_no_training(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training has its features and reads it no more."""

    def gone(path: Path, max_pixels: int) -> Image.Image:
        raise UserError(f"{path}: no such file")

    monkeypatch.setattr("artkv.training.validation.open_picture", gone)
    assert run_training(["training.num_epochs=1"]).step > 0
    assert "step 0: no pictures in TensorBoard: " in capsys.readouterr().err
    tags = EventAccumulator(str(tiny_config.run.output_dir)).Reload().Tags()
    assert "validation/exact_match" in tags["scalars"]
    assert not [tag for tag in tags["images"] if tag.startswith("works/")]


@pytest.mark.parametrize("setting", ["evaluation.each_epoch=false", "evaluation.each_epoch=true"])
def test_validating_before_the_first_step_changes_no_byte_of_training(
    run_training: Train, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    import artkv.training.loop as loop

    run_training([setting, "training.num_epochs=1"])
    expected = final_bytes(tiny_config.run.output_dir)
    score: Callable[..., float | None] = loop._score
    monkeypatch.setattr(loop, "_score", lambda validate, step, stops: score(validate, step, stops) if step else None)
    other = tiny_config.run.output_dir.with_name("other")
    run_training([setting, "training.num_epochs=1", f"run.output_dir={other}"])
    assert final_bytes(other) == expected
    records = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert not [record for record in records if record["step"] == 0]
