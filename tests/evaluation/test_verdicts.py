"""What is said of a comparison."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artkv.evaluation.answer_summary import summarize_answers
from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.comparison import Comparison, compare_values
from artkv.evaluation.resampling import Resampling
from artkv.evaluation.run_roles import open_run
from artkv.evaluation.verdicts import format_comparison, verdict, verdicts
from tests.evaluation.evaluations import write_run

PAINTINGS = 100
DRAWS = Resampling(500, 0)
ONE = " (one training of each; other seeds are not covered)"


def comparison(on: float, has_prefix: bool = True, paintings: int = PAINTINGS, **others: float) -> Comparison:
    """One question about the style of each painting, of which these shares are right."""

    def right(share: float) -> np.ndarray:
        return (np.arange(paintings) < share * paintings).astype(float)

    types = ["style"] * paintings
    without = {name: right(share) for name, share in others.items()}
    baselines = {name: without[name] for name in ("control", "off") if name in without and "shuffled" in without}
    return Comparison(
        split="test",
        metric="exact_match",
        checkpoint="step_00000081",
        has_prefix=has_prefix,
        runs=(),
        against=compare_values(right(on), without, np.arange(paintings), types, DRAWS),
        shuffled_over=compare_values(right(others.get("shuffled", 0)), baselines, np.arange(paintings), types, DRAWS),
        seeds=None,
        answers=summarize_answers(["x"] * paintings, ["x"] * paintings, types, {}, "exact_match"),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            comparison(0.95, off=0.1, shuffled=0.1, control=0.15),
            "style: the prefix adds 0.80 [0.72, 0.87] over the control; shuffled prefixes are not shown to "
            f"(-0.05 [-0.09, -0.01]): it carries facts of this painting{ONE}",
        ),
        (
            comparison(0.95, off=0.15, shuffled=0.1),
            "style: the prefix adds 0.80 [0.72, 0.87] over its absence; shuffled prefixes are not shown to "
            "(-0.05 [-0.09, -0.01]): it carries facts of this painting",
        ),
        (
            # What is lost is a little less than was gained, which chance alone makes it.
            comparison(0.95, off=0.15, shuffled=0.17),
            "style: the prefix adds 0.80 [0.72, 0.87] over its absence; shuffled prefixes are not shown to "
            "(0.02 [-0.02, 0.06]): it carries facts of this painting",
        ),
        (
            comparison(0.9, off=0.1, shuffled=0.5),
            "style: the prefix adds 0.80 [0.71, 0.88] over its absence; shuffled prefixes add 0.40 [0.30, 0.50]: "
            "it carries facts of this painting, and adds without them",
        ),
        (
            comparison(0.9, off=0.1, shuffled=0.9),
            "style: the prefix adds 0.80 [0.71, 0.88] over its absence; shuffled prefixes do no worse "
            "(0.00 [-0.04, 0.04]): no facts of this painting are shown",
        ),
        (
            comparison(0.95, off=0.15),
            "style: the prefix adds 0.80 [0.72, 0.87] over its absence; shuffled prefixes were not evaluated, "
            "so whether it carries facts of this painting is open",
        ),
        (
            comparison(0.5, control=0.5, shuffled=0.5),
            "style: no difference over the control is shown, 0.00 [-0.04, 0.04]; one of 0.08 would have been, "
            f"in 80% of such sets{ONE}",
        ),
        (
            comparison(1.0, control=0.9, shuffled=0.9, paintings=5),
            "style: no difference over the control is shown, 0.00 [-0.43, 0.43]; 5 paintings are too few to show any"
            f"{ONE}",
        ),
        (
            comparison(0.5, control=0.5, shuffled=0.1),
            "style: no difference over the control is shown, 0.00 [-0.04, 0.04]; one of 0.08 would have been, "
            f"in 80% of such sets; with another painting's prefix it is worse, by 0.40 [0.30, 0.50]{ONE}",
        ),
        (comparison(0.1, control=0.5), f"style: the prefix costs 0.40 [0.30, 0.50] over the control{ONE}"),
        (
            comparison(0.5, shuffled=0.1),
            "style: neither the control nor the prefix off was evaluated; another painting's prefix does worse: "
            "it carries facts of this painting",
        ),
        (
            comparison(0.5, has_prefix=False, off=0.5, blank=0.1),
            "style: there is no prefix to judge, since this run was trained without one",
        ),
    ],
)  # fmt: skip
def test_verdicts_say_what_the_tests_show(given: Comparison, expected: str) -> None:
    assert verdict(given, "style") == expected
    # There is one type alone, so that all questions say the same.
    assert verdicts(given) == [expected, expected.replace("style", "all", 1)]


def test_a_types_verdict_is_by_the_corrected_p_value() -> None:
    given = comparison(0.06, off=0.0)
    difference = given.against["off"].by_type["style"]
    assert 0.01 < difference.p_value < 0.05
    assert "adds" in verdict(given, "style")
    corrected = replace(given.against["off"], by_type={"style": replace(difference, p_holm=0.06)})
    assert "no difference" in verdict(replace(given, against={"off": corrected}), "style")


def of_seeds(tmp_path: Path, styles_right: Sequence[int], controls_right: Sequence[int]) -> Comparison:
    """Runs and controls of as many seeds, of which so many styles of twenty are right."""
    runs = [
        write_run(tmp_path / f"run{seed}", {"on": right, "off": 3, "shuffled": 2}, training={"seed": seed})
        for seed, right in enumerate(styles_right)
    ]
    controls = [
        write_run(tmp_path / f"control{seed}", {"on": right}, training={"seed": seed}, kv_modulation={"enabled": False})
        for seed, right in enumerate(controls_right)
    ]
    return compare_runs([open_run(folder) for folder in (*runs, *controls)], "test", "exact_match")[0]


def test_seeds_that_contradict_the_first_pair_are_believed(tmp_path: Path) -> None:
    found = of_seeds(tmp_path, [20, 4, 4], [4, 20, 4])
    first = found.against["control"].by_type["style"]
    assert first.is_significant
    assert first.difference.value == 0.8
    sentence = verdict(found, "style")
    # (20 + 4 + 4) / 3 right of both, of twenty.
    assert sentence.startswith("style: no difference over the control is shown, 0.00 [-0.")
    assert sentence.endswith(" (3 seeds, 3 of the control; so few that the interval may be too narrow)")


def test_seeds_that_agree_are_the_verdict(tmp_path: Path) -> None:
    found = of_seeds(tmp_path, [20, 18, 19], [4])
    assert found.seeds is not None
    spread = found.seeds.against["control"].by_type["style"]
    assert spread.mean == pytest.approx(0.95 - 0.2)
    assert verdict(found, "style").startswith(
        f"style: the prefix adds 0.75 [{spread.low:.2f}, {spread.high:.2f}] over the control; shuffled prefixes are not"
    )
    few = "; so few that the interval may be too narrow)"
    assert verdict(found, "style").endswith(
        f" (3 seeds, 1 of the control; other seeds of the control are not covered{few}"
    )
    # The first control alone has 4 of twenty, and another painting's prefix 2.
    added = found.effect_of_shuffled("control", "style")
    assert added is not None
    assert added.estimate.value == pytest.approx((2 - 4) / 20)


def test_enough_seeds_are_not_called_few(tmp_path: Path) -> None:
    assert verdict(of_seeds(tmp_path, [20, 18, 19, 18, 20], []), "style").endswith(" (5 seeds)")


def test_over_seeds_too_the_number_of_types_is_corrected_for(tmp_path: Path) -> None:
    found = of_seeds(tmp_path, [20, 18, 19], [4])
    assert found.seeds is not None
    spreads = found.seeds.against["control"]
    by_type = {**spreads.by_type, "style": replace(spreads.by_type["style"], is_shown=False)}
    seeds = replace(found.seeds, against={**found.seeds.against, "control": replace(spreads, by_type=by_type)})
    assert "no difference" in verdict(replace(found, seeds=seeds), "style")


def test_ablations_that_some_seeds_lack_are_of_the_first_alone(tmp_path: Path) -> None:
    of_seeds(tmp_path, [20, 18], [])
    (tmp_path / "run1" / "eval" / "test-off" / "predictions.csv").unlink()
    runs = [open_run(tmp_path / f"run{seed}") for seed in range(2)]
    assert verdict(compare_runs(runs, "test", "exact_match")[0], "style").endswith(" (the first of 2 seeds alone)")


@pytest.mark.parametrize(
    ("run_right", "what"), [([20, 18, 19], ": it carries facts of this painting"), ([4, 4, 4], "")]
)
def test_facts_by_shuffled_prefixes_of_the_first_seed_are_told_to_be(
    tmp_path: Path, run_right: list[int], what: str
) -> None:
    whole = of_seeds(tmp_path, run_right, [4, 3, 4])
    assert "of the first seed" not in verdict(whole, "style")
    path = tmp_path / "run2" / "eval" / "test-shuffled" / "predictions.csv"
    path.unlink()
    runs = [open_run(tmp_path / f"{kind}{seed}") for kind in ("run", "control") for seed in range(3)]
    sentence = verdict(compare_runs(runs, "test", "exact_match")[0], "style")
    # Of four right nothing is shown, of the prefix or of shuffled ones.
    expected = f"{what} (of the first seed alone) (3 seeds, 3 of the control" if what else "is shown"
    assert expected in sentence
    assert ("of the first seed" in sentence) == bool(what)


def test_what_shuffled_prefixes_add_is_a_test_of_its_own() -> None:
    """A little less is lost than is gained, and by more than the interval of what is lost: noise of one pair alone."""
    generator = np.random.default_rng(0)
    on, off = np.ones(PAINTINGS), np.zeros(PAINTINGS)
    shuffled = (generator.permutation(PAINTINGS) < 4).astype(float)
    types = ["style"] * PAINTINGS
    given = replace(
        comparison(1.0, off=0.0, shuffled=0.04),
        against=compare_values(on, {"off": off, "shuffled": shuffled}, np.arange(PAINTINGS), types, DRAWS),
        shuffled_over=compare_values(shuffled, {"off": off}, np.arange(PAINTINGS), types, DRAWS),
    )
    lost, gained = (given.against[name].by_type["style"].difference for name in ("shuffled", "off"))
    assert lost.high < gained.value
    assert given.shuffled_over["off"].by_type["style"].p_value == 2 / 2**4  # of sixteen signs of four paintings
    assert "shuffled prefixes are not shown to (0.04 " in verdict(given, "style")


def test_tables_hold_every_difference_seed_and_answer(tmp_path: Path) -> None:
    ablations = {"on": 20, "off": 3, "shuffled": 4}
    folders = [
        write_run(tmp_path / "run", ablations),
        write_run(tmp_path / "run7", {**ablations, "on": 18}, training={"seed": 7}),
        write_run(tmp_path / "control", {"on": 5}, kv_modulation={"enabled": False}),
    ]
    found, _ = compare_runs([open_run(folder) for folder in folders], "test", "exact_match")
    blocks = format_comparison(found).split("\n\n")
    assert blocks[0].splitlines() == [
        "exact_match on test, prefix on, difference to each of these:",
        f"  {folders[0]}: the run that is compared, of seed 1337",
        f"  {folders[1]}: the same with seed 7",
        f"  {folders[2]}: a control, of seed 1337",
    ]
    for block, name in zip(blocks[1:4], ("off", "shuffled", "control"), strict=True):
        header, *rows = block.splitlines()
        assert header.startswith(f"against {name} ")
        assert [row.split()[0] for row in rows] == ["colour", "style", "all"]
        style = found.against[name].by_type["style"]
        estimate = style.difference
        assert f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" in rows[1]
        assert rows[1].split()[-2:] == [str(style.wins), str(style.losses)]
        assert len({len(line) for line in block.splitlines()}) == 1
        assert len(header) <= 120
    for block, name in zip(blocks[4:6], ("control", "off"), strict=True):
        header, _, style, _ = block.splitlines()
        assert header.startswith(f"shuffled against {name} ")
        assert f" {found.shuffled_over[name].by_type['style'].difference.value:.3f} [" in style
    assert "over 2 seeds, 1 of the control" in blocks[6]
    assert "off, style" in blocks[6]
    assert "shuffled over control, style" in blocks[6]
    assert "note: 2 seeds of the run are few" in blocks[6]
    assert "style 0, of test" in blocks[7]  # the guess, and whose
    assert blocks[8].splitlines() == verdicts(found)
