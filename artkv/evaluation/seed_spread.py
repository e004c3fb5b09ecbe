"""A difference over runs that differ in their seed: mean, spread, and an interval for other paintings and other seeds.

Letters in array names are explained in `artkv.batch`; U are runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from artkv.evaluation.resampling import (
    NO_SPREAD,
    Floats,
    Resampling,
    bootstrap_means,
    deviating,
    fewest_differing,
    percentile_interval,
    sum_by_painting,
    with_what_is_unseen,
)

# With fewer runs, their spread is hardly known, and the interval too narrow; docs/evaluation.md has by how much.
FEW_SEEDS = 5


@dataclass(frozen=True)
class SeedSpread:
    """A difference over runs that differ in their seed.

    differences: of each run. mean: over them. standard_deviation: of the difference of one run, that of what it is
    compared with included; None where either is known of one run alone. low, high: the 95%
    interval of the mean, for other paintings and other seeds, see `spread_over_seeds`. is_shown: whether the interval
    leaves 0 out where it is widened for the number of question types, and as many paintings differ as a test of signs
    asks for (`fewest_differing`).
    """

    differences: tuple[float, ...]
    mean: float
    standard_deviation: float | None
    low: float
    high: float
    is_shown: bool

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `vars` gave; files from before `is_shown` have the interval alone to go by."""
        shown = {"is_shown": not tree["low"] <= 0 <= tree["high"]}
        return cls(**{**shown, **tree, "differences": tuple(tree["differences"])})


@dataclass(frozen=True)
class SeedSpreads:
    """Of a split: overall, and of each question type."""

    overall: SeedSpread
    by_type: dict[str, SeedSpread]

    def to_json(self) -> dict[str, Any]:
        """`{"overall": {...}, "by_type": {type: {...}}}`."""
        return {"overall": vars(self.overall), "by_type": {name: vars(one) for name, one in self.by_type.items()}}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        by_type = {name: SeedSpread.from_json(given) for name, given in tree["by_type"].items()}
        return cls(SeedSpread.from_json(tree["overall"]), by_type)


@dataclass(frozen=True)
class Seeds:
    """Differences over the runs of several seeds.

    training_seeds, control_seeds: of the runs with the prefix, and of the controls. warning: what is to be kept in
    mind, None for nothing. against, shuffled_over: by what is compared with, as those of `Comparison`.
    """

    training_seeds: tuple[int, ...]
    control_seeds: tuple[int, ...]
    warning: str | None
    against: dict[str, SeedSpreads]
    shuffled_over: dict[str, SeedSpreads] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, in plain values."""
        spreads = {"against": self.against, "shuffled_over": self.shuffled_over}
        return vars(self) | {key: {name: one.to_json() for name, one in of.items()} for key, of in spreads.items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(
            tuple(tree["training_seeds"]),
            tuple(tree["control_seeds"]),
            tree["warning"],
            *(
                {name: SeedSpreads.from_json(given) for name, given in tree.get(key, {}).items()}
                for key in ("against", "shuffled_over")
            ),
        )


def spreads_over_seeds(
    with_QU: Floats,
    without_QU: Floats,
    painting_Q: NDArray[Any],
    rows_of_types: Mapping[str, NDArray[np.int64]],
    resampling: Resampling,
    is_paired: bool,
) -> SeedSpreads:
    """A difference over seeds on all questions together and on those of each type; see `spread_over_seeds`."""
    tests = len(rows_of_types)
    return SeedSpreads(
        spread_over_seeds(with_QU, without_QU, painting_Q, resampling, is_paired),
        {
            name: spread_over_seeds(with_QU[rows], without_QU[rows], painting_Q[rows], resampling, is_paired, tests)
            for name, rows in rows_of_types.items()
        },
    )


def spread_over_seeds(
    with_QU: Floats,
    without_QU: Floats,
    painting_Q: NDArray[Any],
    resampling: Resampling,
    is_paired: bool,
    tests: int = 1,
) -> SeedSpread:
    """A difference over the runs of several seeds, a column each.

    is_paired: each run has its own column to compare with, as its ablations are. Else the columns of `without_QU` are
    runs by themselves, such as controls, and each run is compared with their mean. tests: the number of question types
    where it is of one of them.

    The interval draws paintings and runs, crossed: each sample has the same paintings in all of its runs (Owen, The
    Pigeonhole Bootstrap, 2007). Of U runs it draws U - 1, with which their mean has the right variance, where U would
    have one too small by (U - 1) / U (Rao and Wu, Resampling Inference With Complex Survey Data, 1988). One run is
    taken as it is, and the interval then says nothing of other seeds.
    """
    if is_paired:
        with_QU, without_QU = with_QU - without_QU, np.zeros((len(with_QU), 1))
    means_BU = []
    for place, values_QU in enumerate((with_QU, without_QU)):
        sums_IU, size_I = sum_by_painting(values_QU, painting_Q)
        drawn_BU = bootstrap_means(sums_IU, size_I, resampling.samples, resampling.seed)
        means_BU.append(_mean_of_drawn_runs(drawn_BU, [resampling.seed, place]))
    mean_U, others = with_QU.mean(axis=0), without_QU.mean()
    mean = float(mean_U.mean() - others)
    sums_I1, size_I = sum_by_painting((with_QU.mean(axis=1) - without_QU.mean(axis=1))[:, None], painting_Q)
    values_I = sums_I1[:, 0] / size_I
    (low, high), (wide_low, wide_high) = (
        _interval_of_draws(means_BU[0] - means_BU[1], mean, values_I, number) for number in (1, tests)
    )
    is_enough = bool((np.abs(values_I) > NO_SPREAD).sum() >= fewest_differing(tests))
    # Of a pair a run's own; else the controls' too, to whose mean all runs are held.
    means = [values_QU.mean(axis=0) for values_QU in ((with_QU,) if is_paired else (with_QU, without_QU))]
    return SeedSpread(
        differences=tuple(float(value) for value in mean_U - others),
        mean=mean,
        standard_deviation=math.sqrt(sum(of_U.var(ddof=1) for of_U in means))
        if all(len(of_U) > 1 for of_U in means)
        else None,
        low=low,
        high=high,
        is_shown=is_enough and not wide_low <= 0 <= wide_high,
    )


def _interval_of_draws(means_B: Floats, mean: float, values_I: Floats, tests: int) -> tuple[float, float]:
    """values_I: each painting's mean difference over its questions and all runs."""
    paintings = len(values_I)
    if paintings == 1:
        return -1.0, 1.0
    drawn = percentile_interval(means_B[:, None], paintings, tests)
    low, high = with_what_is_unseen(drawn, np.array([mean]), deviating(values_I[:, None]), paintings, -1.0, tests)
    return float(low[0]), float(high[0])


def _mean_of_drawn_runs(means_BU: Floats, seed: list[int]) -> Floats:
    """(B,) means over runs that are drawn with replacement, one fewer than there are."""
    samples, runs = means_BU.shape
    if runs == 1:
        return means_BU[:, 0]
    times_BU = np.random.default_rng(seed).multinomial(runs - 1, np.full(runs, 1 / runs), size=samples)
    mean_B: Floats = (times_BU * means_BU).sum(axis=1) / (runs - 1)
    return mean_B
