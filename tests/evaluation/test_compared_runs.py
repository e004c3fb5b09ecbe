"""Comparisons of evaluations that were written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from artkv.errors import UserError
from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.comparison import Comparison, compare_values
from artkv.evaluation.resampling import Resampling
from artkv.evaluation.results import read_predictions
from artkv.evaluation.run_roles import open_run
from artkv.evaluation.verdicts import format_comparison
from tests.evaluation.evaluations import PAINTINGS, answers_to, choices_of, make_table, write_evaluation, write_run

CONTROL = {"enabled": False}
ALL = {"on": 20, "off": 3, "shuffled": 4, "on-blank": 0}


def compare(*folders: Path, metric: str = "exact_match") -> Comparison:
    comparison, path = compare_runs([open_run(folder) for folder in folders], None, metric)
    assert path == folders[0] / "eval" / "test-on" / "comparison.json"
    assert Comparison.from_json(json.loads(path.read_text(encoding="utf-8"))) == comparison
    return comparison


def test_a_run_is_compared_with_its_ablations_and_its_control(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ALL)
    control = write_run(tmp_path / "control", {"on": 5}, kv_modulation=CONTROL)
    found = compare(run, control)
    assert list(found.against) == ["off", "shuffled", "blank", "control"]
    for name, right in (("off", 3), ("shuffled", 4), ("blank", 0), ("control", 5)):
        style, colour = (found.against[name].by_type[kind] for kind in ("style", "colour"))
        assert style.difference.value == pytest.approx(1 - right / PAINTINGS)
        assert (style.wins, style.losses, style.paintings) == (PAINTINGS - right, 0, PAINTINGS)
        assert style.is_significant
        assert colour.difference.value == 0
        assert found.against[name].overall.questions == 2 * PAINTINGS
    assert (found.split, found.metric, found.checkpoint, found.has_prefix) == (
        "test", "exact_match", "step_00000081", True,
    )  # fmt: skip
    assert found.seeds is None
    assert found.answers["style"].majority.source == "split"  # the config names no training data
    by_f1 = compare(run, control, metric="token_f1")
    assert by_f1.against["off"].by_type["style"].difference.value == pytest.approx((1 - 3 / PAINTINGS) / 2)


def test_the_training_splits_majority_is_taken_where_its_file_can_be_read(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text("image,question,answer,question_type\na,b,Style 1,style\na,b,style 1,style\na,b,style 0,style\n")
    run = write_run(tmp_path / "run", ALL, dataset={"train": train})
    summary = compare(run).answers
    assert (summary["style"].majority.answer, summary["style"].majority.source) == ("style 1", "train")
    assert summary["style"].majority.value == pytest.approx(7 / PAINTINGS)
    assert summary["colour"].majority.source == "split"
    train.unlink()
    assert compare(run).answers["style"].majority.source == "split"


def test_seeds_of_a_run_and_of_its_control_are_put_together(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"run{seed}", {**ALL, "on": right}, training={"seed": seed})
        for seed, right in ((1, 20), (2, 18), (3, 16))
    ]
    controls = [
        write_run(tmp_path / f"control{seed}", {"on": right}, training={"seed": seed}, kv_modulation=CONTROL)
        for seed, right in ((1, 5), (2, 3))
    ]
    found = compare(*runs, *controls)
    assert found.seeds is not None
    assert (found.seeds.training_seeds, found.seeds.control_seeds) == ((1, 2, 3), (1, 2))
    assert found.seeds.warning is not None
    assert "3 seeds of the run are few" in found.seeds.warning
    assert "2 seeds of the control are few" in found.seeds.warning
    style = found.seeds.against["control"].by_type["style"]
    assert style.differences == pytest.approx((16 / 20, 14 / 20, 12 / 20))
    assert style.mean == pytest.approx(14 / 20)
    assert style.standard_deviation == pytest.approx(np.hypot(0.1, 0.1 / np.sqrt(2)))  # of the run, and of the control
    assert style.low < 14 / 20 < style.high
    # Each run's own ablation.
    assert found.seeds.against["off"].by_type["style"].differences == pytest.approx((17 / 20, 15 / 20, 13 / 20))
    # The first run and the first control alone:
    assert found.against["control"].by_type["style"].difference.value == pytest.approx(15 / 20)

    (runs[2] / "eval" / "test-off" / "predictions.csv").unlink()
    found = compare(*runs)
    assert found.seeds is not None
    assert list(found.seeds.against) == ["shuffled", "blank"]
    assert found.seeds.warning is not None
    assert found.seeds.warning.endswith("off: not evaluated for every seed")


def test_another_run_is_compared_under_its_folders_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ALL)
    longer = write_run(tmp_path / "longer", {"on": 20}, training={"num_epochs": 9})
    found = compare(run, longer)
    assert list(found.against) == ["off", "shuffled", "blank", "longer"]
    assert found.against["longer"].overall.difference.value == 0


def test_seeds_of_two_settings_are_held_against_each_other(tmp_path: Path) -> None:
    def seeds(name: str, styles_right: tuple[int, ...], tokens: int) -> list[Path]:
        return [
            write_run(
                tmp_path / f"{name}{seed}", {"on": right}, training={"seed": seed},
                kv_modulation={"num_prefix_tokens": tokens},
            )
            for seed, right in enumerate(styles_right)
        ]  # fmt: skip

    found = compare(*seeds("eight", (20, 18, 19), 8), *seeds("four", (10, 14), 4))
    assert [run.taken_for for run in found.runs][3:] == [
        "another run: it differs in kv_modulation.num_prefix_tokens", "the same as four0, of seed 1",
    ]  # fmt: skip
    assert list(found.against) == ["four0"]
    assert found.seeds is not None
    style = found.seeds.against["four0"].by_type["style"]
    assert style.differences == pytest.approx((8 / 20, 6 / 20, 7 / 20))  # to the mean of ten and fourteen
    variance = np.var([1, 0.9, 0.95], ddof=1) + np.var([0.5, 0.7], ddof=1)
    assert style.standard_deviation == pytest.approx(np.sqrt(variance))
    assert found.seeds.warning is not None
    assert "2 seeds of the run four0 are few" in found.seeds.warning


def test_a_control_alone_has_no_prefix(tmp_path: Path) -> None:
    assert not compare(write_run(tmp_path / "control", {"on": 5, "on-blank": 0}, kv_modulation=CONTROL)).has_prefix


def test_what_was_not_evaluated_or_not_alike_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"on": 20})
    with pytest.raises(UserError, match="run/eval/test-on: is all that was evaluated, .*; evaluate with --all-abl"):
        compare(run)
    assert not (run / "eval" / "test-on" / "comparison.json").exists()
    empty = write_run(tmp_path / "empty", {}, kv_modulation=CONTROL)
    with pytest.raises(UserError, match="empty: holds no run, though a config.yaml; give a run.output_dir"):
        compare(empty)
    (tmp_path / "empty" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="empty: no split was answered .*; artkv evaluate --checkpoint"):
        compare(empty)
    with pytest.raises(UserError, match="empty: has not answered the test split with the prefix on; artkv evaluate"):
        compare(run, empty)

    table = make_table(tmp_path)
    write_evaluation(run, "off", table, answers_to(table, 3), checkpoint="step_00000040")
    with pytest.raises(UserError, match="test-off: is of step_00000040, .*test-on of step_00000081; evaluate one of"):
        compare(run)

    fewer = make_table(tmp_path, paintings=PAINTINGS - 1)
    write_evaluation(run, "off", fewer, answers_to(fewer, 3))
    with pytest.raises(UserError, match="test-off/predictions.csv: has 38 questions, .*test-on/predictions.csv 40"):
        compare(run)


def test_draws_follow_from_the_runs_own_settings(tmp_path: Path) -> None:
    own = {"evaluation": {"bootstrap_samples": 7}, "training": {"seed": 2}}
    run = write_run(tmp_path / "run", {"on": 20, "off": 3}, **own)
    on, off = (read_predictions(run / "eval" / f"test-{name}") for name in ("on", "off"))
    expected = compare_values(
        on.scores("exact_match"),
        {"off": off.scores("exact_match")},
        np.array(on.columns["image"]),
        on.columns["question_type"],
        Resampling(samples=7, seed=2),
    )
    assert compare(run).against["off"] == expected["off"]


def test_choices_are_compared_where_accuracy_is_asked_for(tmp_path: Path) -> None:
    run, table = write_run(tmp_path / "run", ALL), make_table(tmp_path)
    for ablation, right in (("on", 20), ("off", 6), ("shuffled", 3), ("on-blank", 0)):
        write_evaluation(run, ablation, table, answers_to(table, 20), choices=choices_of(table, right))
    found = compare(run, metric="accuracy")
    assert list(found.against["off"].by_type) == ["style"]  # colours did not choose
    # Style 2, of every third painting, is no candidate.
    assert found.against["off"].overall.with_value == pytest.approx(14 / PAINTINGS)
    assert found.against["off"].overall.without_value == pytest.approx(4 / PAINTINGS)
    assert found.answers["style"].majority.value == pytest.approx(7 / PAINTINGS)
    assert compare(run).against["off"].overall.difference.value == 0  # of what was generated


def test_choices_among_other_candidates_are_not_compared(tmp_path: Path) -> None:
    run, table = write_run(tmp_path / "run", ALL), make_table(tmp_path)
    for ablation in ALL:
        write_evaluation(run, ablation, table, answers_to(table, 20), choices=choices_of(table, 3))
    path = run / "eval" / "test-off" / "metrics.json"
    path.write_text(path.read_text().replace('"style X"', '"style Y"'))
    with pytest.raises(UserError, match=r"test-off/predictions.csv: chose among other candidates than .*test-on"):
        compare(run, metric="accuracy")
    write_evaluation(run, "off", table, answers_to(table, 20))
    with pytest.raises(UserError, match=r"test-off/predictions.csv: has no choices; evaluate again with --choices"):
        compare(run, metric="accuracy")


@pytest.mark.parametrize(
    ("name", "before", "now", "message"),
    [
        ("max_new_tokens", 100, 5, "evaluation.max_new_tokens = 5, .*test-on/predictions.csv with 100; evaluate both"),
        ("prompt", "Q: {q} A:", "{q}", "dataset.prompt = '{q}', .*test-on/predictions.csv with 'Q: {q} A:'; evaluate"),
        ("quantised", [], ["frozen.opt nf4"], r"quantised weights = \['frozen.opt nf4'\], .* with \[\]; evaluate both"),
    ],
)
def test_answers_that_were_computed_otherwise_are_not_compared(
    tmp_path: Path, name: str, before: object, now: object, message: str
) -> None:
    run, control = (
        write_run(tmp_path / folder, {}, kv_modulation={"enabled": folder == "run"}) for folder in ("run", "c")
    )
    table = make_table(tmp_path)
    write_evaluation(run, "on", table, answers_to(table, 20), **{name: before})
    write_evaluation(control, "on", table, answers_to(table, 3), **{name: now})
    with pytest.raises(UserError, match=f"c/eval/test-on/predictions.csv: was answered with {message}"):
        compare(run, control)
    write_evaluation(control, "on", table, answers_to(table, 3))  # before it was written down, nobody knows
    assert list(compare(run, control).against) == ["control"]


@pytest.mark.parametrize(
    ("name", "before", "now", "section"),
    [
        ("prompt", "Question: {question} Answer:", "{question}\n", {"dataset": {"prompt": "{question}\n"}}),
        ("max_new_tokens", 100, 5, {"evaluation": {"max_new_tokens": 5}}),
        ("quantised", [], ["frozen.opt nf4"], {"frozen": {"opt": "nf4"}}),
        ("quantised", [], ["frozen.storage int8"], {"frozen": {"opt": "stream", "storage": "int8"}}),
    ],
)
def test_what_was_trained_otherwise_is_compared_as_it_was_trained_with_a_note(
    tmp_path: Path, name: str, before: object, now: object, section: dict
) -> None:
    run, other, third = (
        write_run(tmp_path / folder, {}, **given)
        for folder, given in (("run", {}), ("other", section), ("third", {**section, "training": {"seed": 7}}))
    )
    table = make_table(tmp_path)
    write_evaluation(run, "on", table, answers_to(table, 20), **{name: before})
    for folder in (other, third):
        write_evaluation(folder, "on", table, answers_to(table, 3), **{name: now})
    makes_another = name != "max_new_tokens"  # which trains nothing, so that the third is a seed of the run
    (note,) = (compare(run, other, third) if makes_another else compare(run, third)).notes
    who = "other" if makes_another else "the prefix on of seed 7"
    assert note.startswith(f"{who} was answered with ")
    assert note.endswith(f" = {now!r}, the prefix on with {before!r}, as they were trained")
    # Where a run was answered otherwise than it was trained, it can be answered again.
    write_evaluation(run, "off", table, answers_to(table, 3), **{name: now})
    with pytest.raises(UserError, match="test-off/predictions.csv: was answered with .*; evaluate both alike"):
        compare(run, third)


def test_of_choices_it_does_not_matter_how_long_answers_may_be(tmp_path: Path) -> None:
    run, table = write_run(tmp_path / "run", {}), make_table(tmp_path)
    for ablation, most in (("on", 100), ("off", 5)):
        right = answers_to(table, 20)
        write_evaluation(run, ablation, table, right, choices=choices_of(table, 20), max_new_tokens=most)
    with pytest.raises(UserError, match="evaluation.max_new_tokens = 5, .* with 100; evaluate both alike"):
        compare(run)
    found = compare(run, metric="accuracy")
    assert list(found.against) == ["off"]
    assert found.notes == ()


def test_another_type_of_any_seed_is_noted(tmp_path: Path) -> None:
    table, folders = make_table(tmp_path), []
    for place, (kind, enabled) in enumerate((("a", True), ("b", True), ("c", False), ("d", False), ("e", False))):
        folders.append(write_run(tmp_path / kind, {}, training={"seed": place}, kv_modulation={"enabled": enabled}))
        dtype = "float32" if kind in "bde" else "bfloat16"
        write_evaluation(folders[-1], "on", table, answers_to(table, 10), dtype=dtype)
    rest = "was answered in float32, the prefix on in bfloat16, which alone may change answers"
    assert compare(*folders).notes == (f"the prefix on of seed 1 {rest}", f"control of seeds 3, 4 {rest}")
    assert compare(folders[0], *folders[3:]).notes == (f"control {rest}",)


def test_another_type_and_a_checkpoint_that_the_questions_chose_are_noted(tmp_path: Path) -> None:
    run, table = write_run(tmp_path / "run", {}), make_table(tmp_path)
    write_evaluation(run, "on", table, answers_to(table, 20), dtype="bfloat16")
    write_evaluation(run, "off", table, answers_to(table, 3), dtype="float32")
    notes = compare(run).notes
    assert notes == ("off was answered in float32, the prefix on in bfloat16, which alone may change answers",)
    (run / "checkpoints" / "step_00000081").mkdir(parents=True)
    (run / "best").symlink_to("checkpoints/step_00000081")
    assert compare(run).notes == notes  # of the test split
    (run / "eval" / "test-on").rename(run / "eval" / "val-on")
    (run / "eval" / "test-off").rename(run / "eval" / "val-off")
    comparison, _ = compare_runs([open_run(run)], "val", "exact_match")
    assert comparison.notes[0].startswith(
        "step_00000081 is the best of its run on val, so its scores there are too good"
    )
    assert f"note: {comparison.notes[0]}" in format_comparison(comparison).splitlines()
