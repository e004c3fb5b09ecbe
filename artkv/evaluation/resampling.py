"""Intervals and tests that draw, or flip, whole paintings, since questions about one painting are not independent.

Letters in array names are explained in `artkv.batch`; M are columns that are treated alike: metrics, or differences.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
SIGNIFICANT = 1 - LEVEL
# Two-sided.
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)

# Means that are equal but for rounding.
NO_SPREAD = 1e-12
# With fewer paintings that deviate from the rest, draws know little of how many more there may be.
FEWEST_DEVIATING = 6
# Draws at once: 64 x 10 000 paintings of int64 take 5 MB.
_DRAWS_AT_ONCE = 64
# Up to so many paintings that differ, all flips are counted: 2^14 x 14 numbers take 2 MB.
MOST_COUNTED = 14
# Else so many are drawn, and the smallest p-value is 0.0001.
FLIPS = 9_999


@dataclass(frozen=True)
class Resampling:
    """samples: of the bootstrap. seed: of all draws, which are the same for all that is compared."""

    samples: int
    seed: int


def sum_by_painting(values_QM: Floats, painting_Q: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """Each painting's sums over its questions, (I, M), and how many these are, (I,).

    painting_Q: each question's painting, by numbers or names of any kind; I are sorted by them.
    """
    names_I, position_Q = np.unique(painting_Q, return_inverse=True)
    sums_IM = np.zeros((len(names_I), values_QM.shape[1]))
    np.add.at(sums_IM, position_Q, values_QM)
    return sums_IM, np.bincount(position_Q, minlength=len(names_I))


def bootstrap_draws(paintings: int, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each painting is drawn in each sample, (some of B, I) at a time: as many draws as there are paintings.

    Follows from the arguments alone, so that all that is compared on the same paintings has the same draws.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _DRAWS_AT_ONCE):
        number = min(_DRAWS_AT_ONCE, samples - start)
        drawn_BI = generator.integers(paintings, size=(number, paintings))
        offset_BI = drawn_BI + paintings * np.arange(number)[:, None]
        yield np.bincount(offset_BI.ravel(), minlength=number * paintings).reshape(number, paintings)


def bootstrap_means(sums_IM: Floats, size_I: NDArray[np.int64], samples: int, seed: int) -> Floats:
    """(B, M) means over questions of paintings drawn with replacement.

    sums_IM: the sum over each painting's questions. size_I: how many they are.
    """
    sums_and_size = np.column_stack([sums_IM, size_I])
    means = []
    for times_BI in bootstrap_draws(len(size_I), samples, seed):
        totals = times_BI @ sums_and_size
        means.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(means)


def percentile_interval(means_BM: Floats, paintings: int, tests: int = 1) -> tuple[Floats, Floats]:
    """Low and high of the 95% interval of each column, (M,) each: Hesterberg's expanded percentiles.

    tests: how many intervals are to hold at once; each is then one of 1 - 5% / tests (Bonferroni).

    The plain 2.5th and 97.5th percentiles are too narrow with few paintings, as a normal interval with the biased
    standard deviation would be. The percentiles taken here are further out by as much as makes up for both:
    Phi(-sqrt(I / (I - 1)) t), t the 97.5% point of Student's t with I - 1 degrees of freedom. 1.59 and 98.41 with 20
    paintings, 2.41 and 97.59 with 200. (Hesterberg, What Teachers Should Know About the Bootstrap, 2015.)
    """
    expanded = math.sqrt(paintings / (paintings - 1)) * student_t(paintings - 1, z_of(tests))
    tail = 100 * NormalDist().cdf(-expanded)
    low_M, high_M = np.percentile(means_BM, [tail, 100 - tail], axis=0)
    return low_M, high_M


def mean_intervals(
    sums_IM: Floats, size_I: NDArray[np.int64], least: float, samples: int, seed: int
) -> tuple[Floats, Floats]:
    """Low and high of the 95% interval of each column's mean over questions, (M,) each.

    By bootstrap over paintings. Where all of these are equal, every draw would be the same: there Wilson's limit for
    what none of the paintings showed. Where fewer than `FEWEST_DEVIATING` deviate the draws hardly know it, and the
    interval reaches as far as either says. A single painting has the interval `least` to 1, the bounds of a question's
    value.
    """
    paintings, columns = sums_IM.shape
    if paintings == 1:
        return np.full(columns, least), np.ones(columns)
    mean_M = sums_IM.sum(axis=0) / size_I.sum()
    drawn = percentile_interval(bootstrap_means(sums_IM, size_I, samples, seed), paintings)
    deviating_M = deviating(sums_IM / size_I[:, None])
    return with_what_is_unseen(drawn, mean_M, deviating_M, paintings, least)


def deviating(values_IM: Floats) -> NDArray[np.int64]:
    """(M,) how many paintings have another value than most have."""
    ordered_IM = np.sort(values_IM, axis=0)
    paintings, found = len(values_IM), []
    for ordered_I in ordered_IM.T:
        ends = np.flatnonzero(np.append(np.diff(ordered_I) > NO_SPREAD, True))
        found.append(paintings - int(np.diff(ends, prepend=-1).max()))
    return np.array(found, dtype=np.int64)


def with_what_is_unseen(
    drawn: tuple[Floats, Floats],
    mean_M: Floats,
    deviating_M: NDArray[np.int64],
    paintings: int,
    least: float,
    tests: int = 1,
) -> tuple[Floats, Floats]:
    """An interval of draws, widened where few paintings deviate to that of `interval_without_spread`.

    tests: how many intervals are to hold at once, those of the draws and these alike.
    """
    low_M, high_M = interval_without_spread(mean_M, paintings, least, tests)
    is_few_M = deviating_M < FEWEST_DEVIATING
    return (
        np.where(is_few_M, np.minimum(drawn[0], low_M), drawn[0]),
        np.where(is_few_M, np.maximum(drawn[1], high_M), drawn[1]),
    )


def z_of(tests: int) -> float:
    """The two-sided normal quantile for each of several tests, of which none shall err in 95% (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * tests))


def student_t(degrees: int, z: float = Z) -> float:
    """The point of Student's t as probable as `z` of the normal distribution, by Abramowitz and Stegun's 26.7.5.

    The 97.5% point is within 0.001 of the true one from 4 degrees of freedom on. Below it errs by up to 1.5 of 12.7,
    where the percentiles that it is for are the smallest and the largest draw either way.
    """
    x, n = z, degrees
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / n**power for power, term in enumerate(terms, start=1))


def unseen_share(paintings: int, z: float = Z) -> float:
    """The largest share of paintings that may have what none of so many has: Wilson's upper limit for none, of 95%."""
    return z**2 / (paintings + z**2)


def interval_without_spread(value: Floats, paintings: int, least: float, tests: int = 1) -> tuple[Floats, Floats]:
    """Low and high where nearly all paintings have the same value: a share that none showed may be at `least` or at 1.

    value: their mean. With `least` 0 and a value of 0 or 1 it is Wilson's interval, the number of paintings as n.
    """
    share = unseen_share(paintings, z_of(tests))
    return value - share * (value - least), value + share * (1 - value)


def fewest_differing(tests: int) -> int:
    """With fewer paintings that differ no exchange of signs is rare enough: six for one test, since 2 / 2^5 > 5%."""
    return math.floor(math.log2(2 * tests / SIGNIFICANT)) + 1


def sign_flip_p_values(differences_IM: Floats, seed: int) -> Floats:
    """(M,) two-sided p-values of a paired permutation test: differences summed over a painting, their signs exchanged.

    Where two sets of predictions are exchangeable, each painting's difference has either sign with the same
    probability, whatever its questions have in common. The statistic is the absolute sum. All flips are counted where
    at most `MOST_COUNTED` paintings differ; else `FLIPS` are drawn, and p is (b + 1) / (m + 1), which no draw can make
    too small (Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010).
    """
    found_M = np.abs(differences_IM.sum(axis=0))
    # Sums of the same numbers in another order differ by rounding, and shall count as equal.
    reached_M = found_M - 1e-9 * np.maximum(1, np.abs(differences_IM).sum(axis=0))
    p_M = np.ones(differences_IM.shape[1])
    differing_M = (differences_IM != 0).sum(axis=0)
    for column in np.flatnonzero(differing_M <= MOST_COUNTED):
        given = differences_IM[:, column]
        sums = np.zeros(1)
        for difference in given[given != 0]:
            sums = np.concatenate([sums + difference, sums - difference])
        p_M[column] = np.mean(np.abs(sums) >= reached_M[column])
    drawn = np.flatnonzero(differing_M > MOST_COUNTED)
    if len(drawn):
        p_M[drawn] = _drawn_p_values(differences_IM[:, drawn], reached_M[drawn], seed)
    return p_M


def _drawn_p_values(differences_IM: Floats, reached_M: Floats, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    as_large_M = np.zeros(len(reached_M), dtype=np.int64)
    for start in range(0, FLIPS, _DRAWS_AT_ONCE):
        number = min(_DRAWS_AT_ONCE, FLIPS - start)
        signs_BI = 2.0 * generator.integers(2, size=(number, len(differences_IM)), dtype=np.int8) - 1
        as_large_M += (np.abs(signs_BI @ differences_IM) >= reached_M).sum(axis=0)
    return (as_large_M + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many they are, in their order: 5% for any of them to err (Holm, 1979)."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, largest)
    return corrected
