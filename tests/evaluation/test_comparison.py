"""Differences against hand-made cases, statsmodels, and simulations of what they promise."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats

from artkv.evaluation.answer_summary import summarize_answers
from artkv.evaluation.comparison import (
    ComparedRun,
    Comparison,
    Difference,
    compare_values,
    detectable_difference,
    paired_differences,
    standard_errors,
)
from artkv.evaluation.resampling import Resampling, sum_by_painting, unseen_share
from artkv.evaluation.scores import Estimate
from artkv.evaluation.seed_spread import Seeds, SeedSpreads, spread_over_seeds

DRAWS = Resampling(samples=1000, seed=1)


def one_difference(with_Q: list[float], without_Q: list[float], painting_Q: list[int]) -> Difference:
    (found,) = paired_differences(np.array(with_Q)[:, None], np.array(without_Q)[:, None], np.array(painting_Q), DRAWS)
    return found


def test_counts_and_values_by_hand() -> None:
    found = one_difference([1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0], [7, 7, 7, 9, 9, 4])
    assert (found.questions, found.paintings) == (6, 3)
    assert (found.with_value, found.without_value) == pytest.approx((4 / 6, 2 / 6))
    assert found.difference.value == pytest.approx(2 / 6)
    assert (found.wins, found.losses) == (3, 1)
    # Sums of the paintings: 0, 1 and 1. Of the four signs of the two that differ, two reach 2.
    assert found.p_value == 0.5
    assert found.p_holm is None
    assert found.detectable is None  # with fewer than six paintings nothing can be significant
    assert not found.is_significant


def test_the_interval_is_a_plain_bootstraps() -> None:
    """Against a loop that draws paintings and pools their questions, with scipy's t in Hesterberg's percentiles."""
    generator = np.random.default_rng(4)
    painting = generator.integers(25, size=90)
    with_Q, without_Q = (generator.random((2, 90)) < [[0.7], [0.4]]).astype(float)
    (found,) = paired_differences(with_Q[:, None], without_Q[:, None], painting, Resampling(8000, 0))
    members = [np.flatnonzero(painting == name) for name in np.unique(painting)]
    number = len(members)
    drawn = [
        (with_Q - without_Q)[np.concatenate([members[i] for i in generator.integers(number, size=number)])].mean()
        for _ in range(8000)
    ]
    tail = stats.norm.cdf(-math.sqrt(number / (number - 1)) * stats.t.ppf(0.975, number - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # Two independent sets of 8000 draws; the percentile of one is known to about 0.004.
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=0.015)


def test_standard_errors_are_statsmodels_cluster_robust_ones() -> None:
    generator = np.random.default_rng(0)
    painting = generator.integers(17, size=80)
    values = generator.random((80, 2)) + 0.3 * generator.normal(size=17)[painting][:, None]
    found = standard_errors(*sum_by_painting(values, painting))
    for column in range(2):
        fit = sm.OLS(values[:, column], np.ones(80)).fit(cov_type="cluster", cov_kwds={"groups": painting})
        assert found[column] == pytest.approx(fit.bse[0], rel=1e-12)  # fp64 on both sides


def null_comparisons(
    generator: np.random.Generator, paintings: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Each question's painting, and `number` pairs of predictions of one quality, right or wrong.

    Paintings of 1 to 12 questions. How hard a painting is, is common to both of a pair; how well each of the two does
    on it is its own, so that its questions are won or lost together.
    """
    painting_Q = np.repeat(np.arange(paintings), generator.integers(1, 13, size=paintings))
    common = generator.normal(0, 1.2, (paintings, number))
    right = []
    for _ in range(2):
        chance = 1 / (1 + np.exp(-(common + generator.normal(0, 1.0, (paintings, number)))))
        right.append((generator.random((len(painting_Q), number)) < chance[painting_Q]).astype(float))
    return painting_Q, right[0], right[1]


def shares_significant(paintings: int, comparisons: int, by_question: bool) -> tuple[float, float]:
    """Of null comparisons, the shares whose interval leaves 0 out, and whose p-value is below 5%.

    A hundred comparisons share their paintings and draws, so that many such sets are needed, each with its own.
    """
    outside = below = 0
    for repeat in range(comparisons // 100):
        painting_Q, with_QM, without_QM = null_comparisons(np.random.default_rng([paintings, repeat]), paintings, 100)
        clusters = np.arange(len(painting_Q)) if by_question else painting_Q
        found = paired_differences(with_QM, without_QM, clusters, Resampling(1000, repeat))
        outside += sum(not one.difference.low <= 0 <= one.difference.high for one in found)
        below += sum(one.p_value < 0.05 for one in found)
    return outside / comparisons, below / comparisons


def test_of_comparisons_without_a_difference_one_in_twenty_is_significant() -> None:
    """4000 of them, of 120 paintings: a share of 5% is known to 0.34%."""
    by_interval, by_test = shares_significant(paintings=120, comparisons=4000, by_question=False)
    assert 0.04 <= by_interval <= 0.06
    assert 0.04 <= by_test <= 0.06


def test_with_few_paintings_the_interval_keeps_its_promise_and_the_test_is_careful() -> None:
    for paintings, least in ((8, 0.02), (20, 0.04)):  # of eight paintings often fewer than six deviate
        by_interval, by_test = shares_significant(paintings, comparisons=4000, by_question=False)
        assert least <= by_interval <= 0.06
        assert 0.01 <= by_test <= 0.06  # so few sums are there to be reached that many are the same


def test_questions_taken_for_independent_find_differences_where_none_are() -> None:
    by_interval, by_test = shares_significant(paintings=60, comparisons=1000, by_question=True)
    assert by_interval > 0.12
    assert by_test > 0.12


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_five_equal_paintings_are_not_certain(value: float) -> None:
    found = one_difference([value] * 5, [0.0] * 5, [0, 1, 2, 3, 4])
    share = unseen_share(5)  # Wilson's; against statsmodels in test_resampling.py
    expected = (-share, share) if value == 0 else (1 - 2 * share, 1.0)
    assert (found.difference.low, found.difference.high) == pytest.approx(expected)
    assert found.p_value == (1.0 if value == 0 else 2 / 32)


@pytest.mark.parametrize("types", [1, 6])
def test_a_detectable_difference_is_detected_in_four_of_five_sets(types: int) -> None:
    """Independent questions, of which a share is won and fewer are lost; p-values of the test itself.

    Of several types the smallest p-value, which Holm's correction multiplies by their number.
    """
    generator = np.random.default_rng(2)
    paintings, lost, found = 150, 0.1, 0.15
    for _ in range(50):  # until the spread is that of the difference that is asked for, and no other
        # The lost stay as many; the won are as many as make the difference.
        more = lost + found
        error = math.sqrt((more + lost - found**2) / paintings)
        found = detectable_difference(error, paintings, 50, types) or 0
    outcomes = generator.choice([1.0, -1.0, 0.0], p=[more, lost, 1 - more - lost], size=(paintings, 3000))
    differences = paired_differences(outcomes, np.zeros_like(outcomes), np.arange(paintings), Resampling(50, 0))
    share = np.mean([types * difference.p_value < 0.05 for difference in differences])
    # 3000 sets know it to 0.7%. Exchanges of signs spread a little wider than the differences, and reach few sums: seen
    # are 0.748 and 0.754. What one type would have shown is found in 0.49 of the sets where six are corrected for.
    assert share == pytest.approx(0.8, abs=0.07)


@pytest.mark.parametrize(("paintings", "types", "fewest"), [(6, 1, 6), (20, 1, 6), (216, 1, 6), (9, 6, 8), (216, 6, 8)])
def test_where_nothing_differs_what_is_detectable_is_what_the_fewest_paintings_would_show(
    paintings: int, types: int, fewest: int
) -> None:
    """Of one type six, since 2 of 2^6 exchanges are 3.1%; of six types eight, since 6 x 2 of 2^8 are 4.7%."""
    found = detectable_difference(0.0, paintings, 0, types)
    assert found is not None
    assert stats.binom.sf(fewest - 1, paintings, found) == pytest.approx(0.8, abs=1e-9)
    won = (np.random.default_rng(0).random((paintings, 4000)) < found).astype(float)
    differences = paired_differences(won, np.zeros_like(won), np.arange(paintings), Resampling(10, 0))
    share = np.mean([types * difference.p_value < 0.05 for difference in differences])
    assert share == pytest.approx(0.8, abs=0.03)  # 4000 sets know it to 0.6%


def test_too_few_paintings_can_show_nothing_and_a_spread_of_few_counts_for_little() -> None:
    assert detectable_difference(0.0, 5, 0) is None
    assert detectable_difference(0.2, 5, 5) is None
    assert detectable_difference(0.2, 7, 7, tests=6) is None
    assert detectable_difference(0.0, 100, 100) == detectable_difference(0.0, 100, 0)  # all of them won alike
    assert detectable_difference(0.001, 100, 1) == detectable_difference(0.0, 100, 0)
    assert detectable_difference(0.5, 100, 5) == pytest.approx(0.5 * (1.959964 + 0.841621), rel=1e-5)


def compared() -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], NDArray[np.str_], list[str]]:
    """Forty paintings of three questions, each of another type."""
    generator = np.random.default_rng(0)
    types = ["style", "colour", ""] * 40
    painting = np.repeat([f"picture {i}.jpg" for i in range(40)], 3)
    with_Q = np.ones(120)
    off = np.where(np.array(types) == "style", generator.random(120) < 0.2, 1.0).astype(float)
    return with_Q, {"off": off, "control": off.copy(), "blank": np.zeros(120)}, painting, types


def test_types_are_compared_and_corrected_for_how_many_they_are() -> None:
    found = compare_values(*compared(), DRAWS)
    assert list(found) == ["off", "control", "blank"]
    assert list(found["off"].by_type) == ["colour", "style", "untyped"]
    style, colour = found["off"].by_type["style"], found["off"].by_type["colour"]
    assert style.questions == style.paintings == 40
    assert style.p_holm == pytest.approx(3 * style.p_value)
    assert style.is_significant
    assert (colour.p_value, colour.p_holm) == (1.0, 1.0)
    assert found["off"].overall.p_holm is None
    assert found["off"].overall.questions == 120
    # Of three types seven must differ, 3 x 2 of 2^7, of all questions together six. All colours of the forty are right.
    assert colour.detectable is not None
    assert stats.binom.sf(6, 40, colour.detectable) == pytest.approx(0.8, abs=1e-9)
    assert found["off"] == found["control"]  # the same draws for all that is compared
    assert compare_values(*compared(), DRAWS) == found
    _, without, painting, types = compared()
    values = np.random.default_rng(1).random(120)
    first, other = (compare_values(values, without, painting, types, Resampling(1000, seed)) for seed in (1, 2))
    assert first["off"].overall.difference != other["off"].overall.difference


def test_without_types_there_are_none() -> None:
    with_Q, without, painting, _ = compared()
    assert compare_values(with_Q, without, painting, [""] * 120, DRAWS)["off"].by_type == {}
    assert compare_values(with_Q, {}, painting, [""] * 120, DRAWS) == {}


def keys_and_types(tree: object, path: str = "") -> Iterator[tuple[str, type]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from keys_and_types(value, f"{path}/{key}")
    else:
        yield path, type(tree)


def test_json_is_plain_and_comes_back() -> None:
    with_Q, without, painting, types = compared()
    spread = spread_over_seeds(np.column_stack([with_Q, with_Q]), np.zeros((120, 2)), painting, DRAWS, True)
    spreads = SeedSpreads(spread, {"style": spread})
    comparison = Comparison(
        split="test",
        metric="exact_match",
        checkpoint="step_00000081",
        has_prefix=True,
        runs=(ComparedRun("outputs/demo", "the run that is compared", 1337),),
        against=compare_values(with_Q, without, painting, types, DRAWS),
        seeds=Seeds((1, 2), (), "few", {"off": spreads}, {"control": spreads}),
        shuffled_over=compare_values(with_Q, {"control": without["blank"]}, painting, types, DRAWS),
        answers=summarize_answers(["a"] * 120, ["a", "b", "c"] * 40, types, {}, "exact_match"),
    )
    tree = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert Comparison.from_json(tree) == comparison
    assert set(tree["against"]) == {"off", "control", "blank"}
    difference = tree["against"]["off"]["by_type"]["style"]
    assert list(difference) == [
        "questions", "paintings", "with", "without", "difference", "p_value", "p_holm", "detectable", "wins", "losses",
    ]  # fmt: skip
    assert set(difference["difference"]) == {"value", "low", "high"}
    assert tree["against"]["off"]["overall"]["p_holm"] is None
    assert set(tree["seeds"]) == {"training_seeds", "control_seeds", "warning", "against", "shuffled_over"}
    assert {kind for _, kind in keys_and_types(tree)} <= {int, float, str, bool, list, type(None)}


def test_a_file_from_before_shuffled_prefixes_were_held_against_the_control_is_read() -> None:
    spread = spread_over_seeds(np.ones((20, 2)), np.zeros((20, 2)), np.arange(20), DRAWS, True)
    seeds = Seeds((1, 2), (), None, {"off": SeedSpreads(spread, {})})
    answers = summarize_answers(["a"], ["a"], [""], {}, "exact_match")
    given = Comparison("test", "exact_match", "step_00000081", True, (), {}, seeds, answers)
    tree = json.loads(json.dumps(given.to_json()))
    del tree["shuffled_over"], tree["seeds"]["shuffled_over"], tree["seeds"]["against"]["off"]["overall"]["is_shown"]
    assert Comparison.from_json(tree) == given


def test_estimates_are_the_scores_own() -> None:
    found = one_difference([1.0, 0.0], [0.0, 0.0], [0, 1])
    assert isinstance(found.difference, Estimate)
    assert Difference.from_json(found.to_json()) == found
