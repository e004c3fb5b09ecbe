"""Differences over several seeds against hand-made cases, and simulations of what their intervals promise."""

import math

import numpy as np
import pytest
from scipy import stats

from artkv.evaluation.resampling import Resampling, unseen_share
from artkv.evaluation.seed_spread import spread_over_seeds

DRAWS = Resampling(samples=1000, seed=1)


def test_several_seeds_have_mean_and_spread() -> None:
    generator = np.random.default_rng(0)
    with_QU = (generator.random((60, 3)) < [0.7, 0.8, 0.9]).astype(float)
    without_QU = (generator.random((60, 2)) < 0.5).astype(float)
    painting = np.repeat(np.arange(20), 3)
    found = spread_over_seeds(with_QU, without_QU, painting, DRAWS, is_paired=False)
    expected = with_QU.mean(axis=0) - without_QU.mean()
    assert found.differences == pytest.approx(expected)
    assert found.mean == pytest.approx(expected.mean())
    # Of one run less one control, which vary by themselves.
    both = np.var(with_QU.mean(axis=0), ddof=1) + np.var(without_QU.mean(axis=0), ddof=1)
    assert found.standard_deviation == pytest.approx(math.sqrt(both))
    alone = spread_over_seeds(with_QU, without_QU[:, :1], painting, DRAWS, is_paired=False)
    assert alone.standard_deviation is None  # of one control nobody knows how controls vary
    assert found.low < found.mean < found.high
    paired = spread_over_seeds(with_QU, np.roll(with_QU, 1, axis=0), painting, DRAWS, is_paired=True)
    assert paired.differences == pytest.approx((0, 0, 0), abs=1e-12)
    uneven = spread_over_seeds(with_QU, np.ones_like(with_QU), painting, DRAWS, is_paired=True)
    assert uneven.standard_deviation == pytest.approx(np.std(with_QU.mean(axis=0), ddof=1))
    one = spread_over_seeds(with_QU[:, :1], without_QU, painting, DRAWS, is_paired=False)
    assert one.standard_deviation is None


@pytest.mark.parametrize(("seeds", "seed_spread", "least", "most"), [(10, 0.05, 0.92, 0.98), (3, 0.2, 0.7, 0.9)])
def test_the_interval_over_seeds_holds_both_sources(seeds: int, seed_spread: float, least: float, most: float) -> None:
    """With ten seeds it has its 95%. With three that differ much it has not, which is what the warning says."""
    hits = 0
    for repeat in range(300):
        generator = np.random.default_rng([seeds, repeat])
        painting = np.repeat(np.arange(60), generator.integers(1, 7, size=60))
        of_painting = generator.normal(0, 0.3, 60)[painting]
        values = 0.2 + generator.normal(0, seed_spread, seeds) + of_painting[:, None]
        values = values + generator.normal(0, 0.3, values.shape)
        found = spread_over_seeds(values, np.zeros_like(values), painting, Resampling(500, repeat), is_paired=True)
        hits += found.low <= 0.2 <= found.high
    assert least <= hits / 300 <= most  # 300 know a share of 95% to 1.3%


def test_the_mean_of_seeds_has_the_variance_of_a_mean() -> None:
    """Where paintings do not matter: that of U draws of U runs would be too small by (U - 1) / U, and 5% narrower."""
    seeds, paintings = 10, 200
    values = np.tile(np.random.default_rng(0).normal(0.2, 0.05, seeds), (paintings, 1))
    found = spread_over_seeds(values, np.zeros_like(values), np.arange(paintings), Resampling(20_000, 0), True)
    expanded = math.sqrt(paintings / (paintings - 1)) * stats.t.ppf(0.975, paintings - 1)
    expected = expanded * values[0].std(ddof=1) / math.sqrt(seeds)
    # 20 000 draws know the width to 0.7%, and ten numbers have no normal distribution; seen: 0.5%.
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.02)


def test_runs_and_controls_have_the_same_paintings_in_each_sample() -> None:
    """What makes a painting hard is then the same for both, and widens no interval."""
    hard, own = np.random.default_rng(0).random((2, 50, 1))
    found = spread_over_seeds(hard + 0.2 + 0.02 * own, hard, np.arange(50), DRAWS, is_paired=False)
    assert (found.low, found.high) == pytest.approx((0.21, 0.21), abs=0.005)
    assert hard.std() > 0.2


def test_seeds_without_any_difference_are_not_certain() -> None:
    same = np.ones((30, 3))
    found = spread_over_seeds(same, same, np.arange(30), DRAWS, is_paired=True)
    assert (found.low, found.high) == pytest.approx((-unseen_share(30), unseen_share(30)))


def test_of_several_types_the_interval_that_shows_is_wider() -> None:
    """By Bonferroni: of three, the 99.17% interval of scipy's t in Hesterberg's percentiles, of the same draws."""
    values = np.random.default_rng(0).normal(size=(60, 1))
    values = 0.14 + 0.5 * (values - values.mean()) / values.std(ddof=1)
    one, three = (
        spread_over_seeds(values, np.zeros((60, 1)), np.arange(60), Resampling(20_000, 0), True, tests)
        for tests in (1, 3)
    )
    assert (one.low, one.high) == (three.low, three.high)  # what is shown is 95% always
    assert one.low > 0
    assert one.is_shown
    error = 0.5 / math.sqrt(60)
    assert stats.t.ppf(1 - 0.025, 59) * error < 0.14 < stats.t.ppf(1 - 0.025 / 3, 59) * error
    assert not three.is_shown


def test_a_win_of_one_painting_is_no_certainty_over_seeds_either() -> None:
    with_QU = np.zeros((216, 3))
    with_QU[0] = 1.0
    found = spread_over_seeds(with_QU, np.zeros((216, 1)), np.arange(216), DRAWS, is_paired=False)
    assert found.low < 0
    assert found.high >= unseen_share(216)
    assert not found.is_shown


@pytest.mark.parametrize(("wins", "paintings", "types"), [(4, 4, 1), (4, 216, 1), (5, 216, 1), (5, 60, 3), (6, 60, 2)])
def test_over_seeds_too_few_wins_are_as_uncertain_as_none(wins: int, paintings: int, types: int) -> None:
    with_QU = np.zeros((paintings, 3))
    with_QU[:wins] = 1.0
    found = spread_over_seeds(with_QU, np.zeros((paintings, 3)), np.arange(paintings), DRAWS, True, types)
    # Of seeds that are all alike there is one comparison, and scipy's exact test of its signs is two-sided.
    assert stats.binomtest(wins, wins).pvalue * types > 0.05
    assert not found.is_shown
