"""What is said of a comparison."""

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


def comparison(on: float, has_prefix: bool = True, paintings: int = PAINTINGS, **others: float) -> Comparison:
    """One question about the style of each painting, of which these shares are right."""

    def right(share: float) -> np.ndarray:
        return (np.arange(paintings) < share * paintings).astype(float)

    types = ["style"] * paintings
    without = {name: right(share) for name, share in others.items()}
    return Comparison(
        split="test",
        metric="exact_match",
        checkpoint="step_00000081",
        has_prefix=has_prefix,
        runs=(),
        against=compare_values(right(on), without, np.arange(paintings), types, Resampling(500, 0)),
        seeds=None,
        answers=summarize_answers(["x"] * paintings, ["x"] * paintings, types, {}, "exact_match"),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            comparison(0.95, off=0.1, shuffled=0.1, control=0.15),
            "style: the prefix adds 0.80 [0.72, 0.87] over the control; shuffled prefixes do not: "
            "it carries facts of this painting",
        ),
        (
            comparison(0.95, off=0.15, shuffled=0.1),
            "style: the prefix adds 0.80 [0.72, 0.87] over its absence; shuffled prefixes do not: "
            "it carries facts of this painting",
        ),
        (
            # What is lost is a little less than was gained, which chance alone makes it.
            comparison(0.95, off=0.15, shuffled=0.17),
            "style: the prefix adds 0.80 [0.72, 0.87] over its absence; shuffled prefixes do not: "
            "it carries facts of this painting",
        ),
        (
            comparison(0.9, off=0.1, shuffled=0.5),
            "style: the prefix adds 0.80 [0.71, 0.88] over its absence; shuffled prefixes add 0.40: "
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
            "in 80% of such sets",
        ),
        (
            comparison(1.0, control=0.9, shuffled=0.9, paintings=5),
            "style: no difference over the control is shown, 0.00 [-0.43, 0.43]; 5 paintings are too few to show any",
        ),
        (
            comparison(0.5, control=0.5, shuffled=0.1),
            "style: no difference over the control is shown, 0.00 [-0.04, 0.04]; one of 0.08 would have been, "
            "in 80% of such sets; with another painting's prefix it is worse, by 0.40 [0.30, 0.50]",
        ),
        (comparison(0.1, control=0.5), "style: the prefix costs 0.40 [0.30, 0.50] over the control"),
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
    assert "over 2 seeds, 1 of the control" in blocks[4]
    assert "off, style" in blocks[4]
    assert "note: 2 seeds of the run are few" in blocks[4]
    assert "style 0, of test" in blocks[5]  # the guess, and whose
    assert blocks[6].splitlines() == verdicts(found)
