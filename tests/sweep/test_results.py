"""A sweep's tables and files, of runs that were written by hand."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.sweep.plan import Sweep
from artkv.sweep.reporting import report_on
from artkv.sweep.results import format_results, gain_tables, notes, question_types, read_results
from tests.sweep.sweeps import GRID, answer, finish_training, make_sweep, write_identity


def test_scores_and_gains_are_those_of_the_seeds(finished: Sweep) -> None:
    results, missing = read_results(finished)
    assert missing == []
    control, four = results
    assert (control.name, four.name) == ("num_prefix_tokens 0", "num_prefix_tokens 4")
    assert (control.seeds, four.seeds) == ((1, 2, 3), (1, 2, 3))
    assert control.comparison is None
    assert question_types(results) == ["colour", "style", "all"]
    assert four.values("style") == pytest.approx([0.9, 1.0, 0.95])
    assert four.values("all") == pytest.approx([0.95, 1.0, 0.975])
    mean, low, high = four.gain("control", "style") or (0, 0, 0)
    assert mean == pytest.approx(0.95 - 0.25)
    assert low < mean < high
    assert four.gain("off", "style")[0] == pytest.approx(0.95 - 0.15)
    assert four.gain("control", "colour")[0] == 0
    assert control.gain("off", "style") is None


def test_the_table_says_mean_spread_and_intervals(finished: Sweep) -> None:
    lines = format_results(*read_results(finished)).splitlines()
    assert lines[0].split() == ["exact_match", "seeds", "colour", "style", "all"]
    spread = statistics.stdev([0.9, 1.0, 0.95])
    assert f"0.950 ± {spread:.3f}" in lines[2]
    on_control = next(number for number, line in enumerate(lines) if line.startswith("on - control"))
    assert lines[on_control + 2].startswith("num_prefix_tokens 4")
    assert "+0.700 [" in lines[on_control + 2]
    assert lines[on_control + 1].split()[-1] == "-"


def test_what_intervals_cover_and_what_chose_the_checkpoints_is_told(finished: Sweep) -> None:
    lines = format_results(*read_results(finished)).splitlines()
    assert lines[-2].endswith("differences with 95% intervals, over paintings and seeds")
    assert lines[-1].startswith("note: num_prefix_tokens 4: 3 seeds of the run are few: ")
    page, _, _ = report_on(finished)[1]
    assert "3 seeds of the run are few" in page.read_text(encoding="utf-8")


def test_of_controls_alone_no_differences_are_told(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{kv_modulation.num_prefix_tokens: [0]}")
    finish_training(sweep.runs[0])
    answer(sweep.runs[0], {"on": 3, "on-blank": 0})
    assert format_results(*read_results(sweep)).splitlines()[-1] == "mean over seeds and their standard deviation"


def test_notes_name_the_settings_that_they_are_of_and_what_chose_the_checkpoints_once(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{kv_modulation.num_prefix_tokens: [2, 4, 8], training.seed: [1, 2]}")
    done = sweep.runs[:5]
    for run in done:
        finish_training(run)
        answer(run, {"on": 20, "off": 3, "shuffled": 2, "on-blank": 0})
    results, _ = read_results(sweep)
    chosen = "step_00000081 is the best of its run on val, so its scores there are too good; report those on test"
    compared = [result.comparison for result in results if result.comparison is not None]
    of_val = [
        replace(result, comparison=replace(comparison, notes=(chosen.replace("81", f"8{place}"),)))
        for place, (result, comparison) in enumerate(zip(results, compared, strict=True))
    ]
    few, best = notes(of_val)
    assert few.startswith("num_prefix_tokens 2; num_prefix_tokens 4: 2 seeds of the run are few: ")
    assert best.startswith("checkpoints are the best of their runs on val, so their scores there are too good; ")


def test_one_seed_is_not_called_seeds(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{kv_modulation.num_prefix_tokens: [0, 4]}")
    for run in sweep.runs:
        finish_training(run)
        answer(run, {"on": 20 if run.config.kv_modulation.enabled else 3, "on-blank": 0})
    last = format_results(*read_results(sweep)).splitlines()[-1]
    assert last.endswith("95% intervals, over paintings; one seed says nothing of other seeds")


def test_an_ablation_that_a_seed_lacks_has_no_row(finished: Sweep) -> None:
    (finished.runs[4].folder / "eval" / "test-off" / "predictions.csv").unlink()
    results, _ = read_results(finished)
    assert results[1].gain("off", "style") is None  # and not the first seed's
    assert results[1].gain("control", "style") is not None
    assert "off: not evaluated for every seed" in format_results(results, [])


def test_what_is_not_done_yet_is_named_and_the_rest_reported(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, GRID)
    with pytest.raises(UserError, match="none of its 6 runs is done yet"):
        read_results(sweep)
    finish_training(sweep.runs[3])
    answer(sweep.runs[3], {"on": 20, "off": 3, "shuffled": 2, "on-blank": 0})
    results, missing = read_results(sweep)
    assert [result.seeds for result in results] == [(1,)]
    assert [run.index for run in missing] == [0, 1, 2, 4, 5]
    assert results[0].gain("off", "style")[0] == pytest.approx(0.85)
    assert results[0].gain("control", "style") is None
    assert "not done yet: 0 (num_prefix_tokens=0,seed=1), 1 (" in format_results(results, missing)


def test_a_control_that_differs_in_more_than_the_prefix_is_none(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{kv_modulation.num_prefix_tokens: [0, 4], training.num_epochs: [1, 2]}")
    for run in sweep.runs:
        finish_training(run)
        answer(run, {"on": 10 if run.config.kv_modulation.enabled else run.config.training.num_epochs, "on-blank": 0})
    results, _ = read_results(sweep)
    gains = {r.name: r.gain("control", "style") for r in results if r.settings["kv_modulation.num_prefix_tokens"]}
    assert {name: gain[0] for name, gain in gains.items()} == {
        "num_prefix_tokens 4, num_epochs 1": pytest.approx(0.45),
        "num_prefix_tokens 4, num_epochs 2": pytest.approx(0.4),
    }


@pytest.mark.parametrize(
    "grid",
    [
        "frozen.opt: [resident, stream]",
        "frozen.opt: [resident, nf4]",
        "evaluation.max_new_tokens: [10, 20]",
        "training.activation_checkpointing: [true, false]",
        "kv_modulation.injection: [concat, decoupled]",
    ],
)
def test_a_grid_over_what_makes_no_other_control_has_one_of_each_seed(tmp_path: Path, grid: str) -> None:
    """And that is the control whose settings are most like the run's, told here by how many it has right."""
    sweep = make_sweep(tmp_path, f"{{{grid}, kv_modulation.num_prefix_tokens: [0, 4], training.seed: [1, 2, 3]}}")
    controls = iter([3, 3, 3, 6, 6, 6])
    for run in sweep.runs:
        finish_training(run)
        answer(run, {"on": 20 if run.config.kv_modulation.enabled else next(controls), "on-blank": 0})
    results, _ = read_results(sweep)
    first, second = (result for result in results if result.comparison is not None)
    for result, right in ((first, 3), (second, 6)):
        assert result.comparison is not None
        assert result.comparison.seeds is not None
        assert result.comparison.seeds.control_seeds == (1, 2, 3)
        assert list(result.comparison.against) == ["blank", "control"]
        assert result.gain("control", "style")[0] == pytest.approx(1 - right / 20)


def test_a_control_whose_answers_may_be_longer_costs_a_sweep_no_row(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{evaluation.max_new_tokens: [10, 20], kv_modulation.num_prefix_tokens: [0, 4]}")
    for run in sweep.runs:
        longer = run.config.evaluation.max_new_tokens == 20
        if run.config.kv_modulation.enabled or longer:  # the other control is not done yet
            finish_training(run)
            answer(run, {"on": 20 if run.config.kv_modulation.enabled else 4, "on-blank": 0})
    results, missing = read_results(sweep)
    assert len(missing) == 1
    gains = {result.name: result.gain("control", "style") for result in results if result.comparison is not None}
    assert gains.pop("max_new_tokens 10, num_prefix_tokens 4") is None
    assert gains["max_new_tokens 20, num_prefix_tokens 4"][0] == pytest.approx(0.8)


def test_seeds_that_came_out_as_other_trainings_leave_no_gain_of_the_rest_and_are_told(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "{training.seed: [1, 2, 3]}")
    for place, run in enumerate(sweep.runs):
        finish_training(run)
        write_identity(run, ranks=2 if place else 1)
        answer(run, {"on": 20 - place, "off": 3, "on-blank": 0})
    results, _ = read_results(sweep)
    assert results[0].seeds == (1, 2, 3)
    assert [results[0].gain(name, "style") for name in ("off", "blank")] == [None, None]
    text = format_results(results, [])
    assert not [line for line in text.splitlines() if line.startswith("on - ")]
    second, third = (run.folder for run in sweep.runs[1:])
    differing = "another run: it differs in training.seed, ranks x accumulation"
    assert f"note: {second}: {differing}" in text.splitlines()
    assert f"note: {third}: the same as {second.name}, of seed 3" in text.splitlines()
    # Where one seed alone is another training the two that are left are no mean of three either.
    write_identity(sweep.runs[1], ranks=1)
    results, _ = read_results(sweep)
    assert results[0].comparison is not None
    assert results[0].comparison.seeds is not None
    assert results[0].comparison.seeds.training_seeds == (1, 2)
    assert results[0].gain("off", "style") is None
    assert f"note: {third}: {differing}" in format_results(results, []).splitlines()


def test_runs_without_an_encoder_have_a_table_beside_the_masks(tmp_path: Path) -> None:
    one, other = "{name: a, checkpoint: /a.pth}", "{name: b, checkpoint: /b.pth}"
    sweep = make_sweep(tmp_path, f"{{efficientnet: [null], art_encoders: [[{one}, {other}], [{other}]]}}")
    both, alone = sweep.runs
    finish_training(both)
    answer(both, {"on": 20, "off": 2, "a-off": 5, "b-off": 12, "on-blank": 0})
    finish_training(alone)
    answer(alone, {"on": 18, "off": 1, "on-blank": 0})
    results, _ = read_results(sweep)
    gains = {name: results[0].gain(name, "style") for name in ("a off", "b off", "without a")}
    assert {name: gain and gain[0] for name, gain in gains.items()} == {
        "a off": pytest.approx(0.75), "b off": pytest.approx(0.4), "without a": pytest.approx(0.1),
    }  # fmt: skip
    assert results[1].gain("a off", "style") is None
    assert list(gain_tables(results, ["style"])) == ["off", "blank", "a off", "b off", "without a"]
    assert "a-off" in results[0].scores[0]
