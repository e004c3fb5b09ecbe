"""Draws, intervals and tests against scipy, statsmodels and plain loops."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from artkv.evaluation.resampling import (
    FLIPS,
    MOST_COUNTED,
    bootstrap_draws,
    bootstrap_means,
    fewest_differing,
    holm,
    mean_intervals,
    percentile_interval,
    sign_flip_p_values,
    student_t,
    sum_by_painting,
    unseen_share,
    with_what_is_unseen,
)


def test_sums_are_of_each_paintings_questions() -> None:
    values = np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0], [8.0, 1.0]])
    sums, size = sum_by_painting(values, np.array(["b", "a", "b", "c"]))
    np.testing.assert_array_equal(sums, [[2, 1], [5, 0], [8, 1]])
    np.testing.assert_array_equal(size, [1, 2, 1])


def test_bootstrap_means_are_those_of_a_loop_over_paintings_and_questions() -> None:
    generator = np.random.default_rng(3)
    painting = generator.integers(9, size=40)
    values = generator.random((40, 2))
    sums, size = sum_by_painting(values, painting)
    means = bootstrap_means(sums, size, samples=130, seed=5)
    members = [np.flatnonzero(painting == name) for name in np.unique(painting)]
    expected = []
    for times in np.concatenate(list(bootstrap_draws(len(size), 130, 5))):
        drawn = np.concatenate([np.tile(rows, number) for rows, number in zip(members, times, strict=True)])
        expected.append(values[drawn].mean(axis=0))
    np.testing.assert_allclose(means, expected, atol=1e-12)  # sums in another order; the worst seen is 3e-16


def test_draws_are_as_many_as_paintings_and_follow_from_the_seed_alone() -> None:
    draws = np.concatenate(list(bootstrap_draws(7, 1000, seed=1)))
    assert draws.shape == (1000, 7)
    assert (draws.sum(axis=1) == 7).all()
    # A painting is drawn once a sample in the mean: 7000 draws know it to sqrt(6/7 / 1000) = 0.03.
    np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.1)
    np.testing.assert_array_equal(draws, np.concatenate(list(bootstrap_draws(7, 1000, seed=1))))
    assert (draws != np.concatenate(list(bootstrap_draws(7, 1000, seed=2)))).any()


def test_students_t_is_scipys() -> None:
    for degrees in (4, 5, 7, 10, 30, 215, 4000):
        assert student_t(degrees) == pytest.approx(
            stats.t.ppf(0.975, degrees), abs=1e-3
        )  # the worst seen is 9e-4, at 4
    for degrees in (1, 2, 3):
        assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.12)


@pytest.mark.parametrize("paintings", [8, 20, 200])
def test_percentiles_are_expanded_as_hesterberg_has_them(paintings: int) -> None:
    means = np.random.default_rng(0).random((1000, 3))
    tail = stats.norm.cdf(-math.sqrt(paintings / (paintings - 1)) * stats.t.ppf(0.975, paintings - 1))
    low, high = percentile_interval(means, paintings)
    expected = np.quantile(means, [tail, 1 - tail], axis=0)
    np.testing.assert_allclose([low, high], expected, atol=1e-4)  # of the expansion of t; the worst seen is 2e-6
    assert tail < 0.025


@pytest.mark.parametrize(("right", "of"), [(0, 5), (5, 5), (0, 216), (216, 216)])
def test_where_all_paintings_are_equal_the_interval_is_wilsons(right: int, of: int) -> None:
    """With the number of paintings as n, however many questions they have."""
    size = np.full(of, 3)
    sums = np.full((of, 1), 3.0 * right / of)
    low, high = mean_intervals(sums, size, 0.0, samples=100, seed=0)
    expected = proportion_confint(right, of, alpha=0.05, method="wilson")
    np.testing.assert_allclose([low[0], high[0]], expected, atol=1e-12)


def test_where_no_difference_showed_it_may_be_either_way_in_a_share_that_wilson_allows() -> None:
    size = np.array([1, 4, 2, 3, 1])
    _, most = proportion_confint(0, 5, alpha=0.05, method="wilson")
    assert unseen_share(5) == pytest.approx(most)
    columns = np.column_stack([0.0 * size, 1.0 * size, -1.0 * size])
    low, high = mean_intervals(columns, size, -1.0, samples=100, seed=0)
    np.testing.assert_allclose(low, [-most, 1 - 2 * most, -1], atol=1e-12)
    np.testing.assert_allclose(high, [most, 1, 2 * most - 1], atol=1e-12)


def zeros_and(values: list[float], of: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[*values, *([0.0] * (of - len(values)))]]).T, np.ones(of, dtype=np.int64)


@pytest.mark.parametrize("wrong", [1, 2, 5])
def test_near_its_bounds_a_score_is_not_surer_than_where_all_are_right(wrong: int) -> None:
    """Draws alone have a narrower interval for 215 right of 216 than for all, and end at 1."""
    low, high = mean_intervals(*zeros_and([1.0] * (216 - wrong), 216), 0.0, samples=4000, seed=0)
    wilson_low, wilson_high = proportion_confint(216 - wrong, 216, alpha=0.05, method="wilson")
    all_right_low, _ = proportion_confint(216, 216, alpha=0.05, method="wilson")
    assert low[0] < all_right_low
    # Wilson's, an approximation too; the worst seen is 0.007, of two wrong and of five.
    assert low[0] == pytest.approx(wilson_low, abs=0.008)
    assert high[0] >= wilson_high - 0.001


def test_few_wins_are_as_uncertain_as_none() -> None:
    for wins in (1, 2, 3):
        low, high = mean_intervals(*zeros_and([1.0] * wins, 216), -1.0, samples=4000, seed=0)
        assert low[0] < 0  # of 2 or 4 or 8 exchanges, no p-value is below 5% either
        assert high[0] >= proportion_confint(0, 216, alpha=0.05, method="wilson")[1]


@pytest.mark.parametrize("tests", [1, 3, 8])
def test_what_is_unseen_is_corrected_for_the_number_of_intervals(tests: int) -> None:
    most = proportion_confint(0, 60, alpha=0.05 / tests, method="wilson")[1]
    none, drawn = np.zeros(1), (np.array([-0.001]), np.array([0.001]))
    low, high = with_what_is_unseen(drawn, none, np.zeros(1, dtype=np.int64), 60, -1.0, tests)
    assert (low[0], high[0]) == pytest.approx((-most, most))


@pytest.mark.parametrize("tests", [1, 2, 3, 6, 20])
def test_the_fewest_that_differ_are_those_of_an_exact_test_of_signs(tests: int) -> None:
    fewest = fewest_differing(tests)
    of_fewest, of_fewer = (stats.binomtest(wins, wins).pvalue * tests for wins in (fewest, fewest - 1))
    assert of_fewest < 0.05 < of_fewer


def test_where_six_paintings_deviate_the_draws_know_it() -> None:
    sums, size = zeros_and([1.0] * 6, 100)
    low, high = mean_intervals(sums, size, -1.0, samples=500, seed=3)
    drawn = percentile_interval(bootstrap_means(sums, size, 500, 3), 100)
    assert (low, high) == drawn


def test_a_single_painting_claims_nothing() -> None:
    low, high = mean_intervals(np.array([[1.0, 0.0]]), np.array([2]), -1.0, samples=10, seed=0)
    assert (low.tolist(), high.tolist()) == ([-1.0, -1.0], [1.0, 1.0])


@pytest.mark.parametrize("paintings", [2, 5, 11])
def test_counted_p_values_are_scipys(paintings: int) -> None:
    generator = np.random.default_rng(paintings)
    with_sums, without_sums = generator.integers(-1, 4, size=(2, paintings, 6)).astype(float)
    with_sums[:, 5] = without_sums[:, 5]  # no difference anywhere
    found = sign_flip_p_values(with_sums - without_sums, seed=0)
    for column in range(6):
        reference = stats.permutation_test(
            (with_sums[:, column], without_sums[:, column]),
            lambda a, b, axis: (a - b).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
        )
        # scipy counts both tails by themselves and doubles the smaller one, of two that are equal.
        assert found[column] == pytest.approx(reference.pvalue, abs=1e-12)


def test_drawn_p_values_are_scipys_and_never_zero() -> None:
    generator = np.random.default_rng(8)
    differences = generator.normal([0.0, 0.25, 0.5, 9.0], 1.0, size=(50, 4))
    found = sign_flip_p_values(differences, seed=0)
    for column in range(3):
        reference = stats.permutation_test(
            (differences[:, column], np.zeros(50)),
            lambda a, b, axis: (a - b).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        )
        # 10 000 and 20 000 draws know a p-value to 0.005 and 0.004, where it is 0.5.
        assert found[column] == pytest.approx(reference.pvalue, abs=0.02)
    assert found[3] == 1 / (FLIPS + 1)


def test_counting_and_drawing_agree_where_one_becomes_the_other() -> None:
    generator = np.random.default_rng(0)
    few = np.zeros((40, 1))
    few[:MOST_COUNTED, 0] = generator.integers(1, 4, size=MOST_COUNTED) * generator.choice([-1, 1, 1], MOST_COUNTED)
    more = few.copy()
    more[-1] = 1e-12  # one painting too many to count, of no weight
    assert sign_flip_p_values(few, 0) == pytest.approx(sign_flip_p_values(more, 0), abs=0.02)


def test_sums_that_rounding_makes_unequal_count_as_equal() -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point; of all signs equal, 2 of 8 are as large."""
    assert sign_flip_p_values(np.array([[0.1], [0.2], [0.3]]), 0)[0] == 2 / 8
    many = np.tile([0.1, 0.2, 0.3], 10)[:, None]
    assert sign_flip_p_values(many, 0)[0] == sign_flip_p_values(10 * many, 0)[0]


@pytest.mark.parametrize("count", [1, 2, 6, 25])
def test_holm_is_statsmodels(count: int) -> None:
    generator = np.random.default_rng(count)
    p_values = (generator.random(count) ** 3).tolist()
    p_values[-1] = p_values[0]  # a tie
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-15)


def test_holm_of_none_is_none() -> None:
    assert holm([]) == []
