"""What one set of predictions adds to others of the same questions: paired differences, with intervals and tests.

All of it draws and flips whole paintings (`artkv.evaluation.resampling`). Letters in array names are explained in
`artkv.batch`; M are the sets of predictions that are compared with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from artkv.evaluation.answer_summary import AnswerSummary
from artkv.evaluation.resampling import (
    SIGNIFICANT,
    Floats,
    Resampling,
    fewest_differing,
    holm,
    mean_intervals,
    sign_flip_p_values,
    sum_by_painting,
    z_of,
)
from artkv.evaluation.scores import Estimate, rows_by_type
from artkv.evaluation.seed_spread import Seeds, SeedSpreads

POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """What is gained on a group of questions.

    questions, paintings: how many. with_value, without_value: the mean scores of the two sets of predictions.
    difference: the first less the second, with its 95% interval. p_value: two-sided, of `sign_flip_p_values`. p_holm:
    corrected for the number of question types; None for the questions of all types together. detectable: the smallest
    difference that so many paintings would have shown, see `detectable_difference`. wins, losses: questions with the
    higher score with, and without; of exact match, those that are right only so.
    """

    questions: int
    paintings: int
    with_value: float
    without_value: float
    difference: Estimate
    p_value: float
    p_holm: float | None
    detectable: float | None
    wins: int
    losses: int

    @property
    def is_significant(self) -> bool:
        """At 5%, corrected for the number of question types where it is of one of them."""
        return (self.p_value if self.p_holm is None else self.p_holm) < SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        """In plain numbers; `with` and `without` are the two values."""
        fields = {**vars(self), "difference": vars(self.difference)}
        return {name.removesuffix("_value") if name in _WITH else name: value for name, value in fields.items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        fields = {f"{name}_value" if f"{name}_value" in _WITH else name: value for name, value in tree.items()}
        return cls(**{**fields, "difference": Estimate(**tree["difference"])})


_WITH = ("with_value", "without_value")


@dataclass(frozen=True)
class Differences:
    """Of a split: overall, and of each question type, in the order of `Scores.by_type`."""

    overall: Difference
    by_type: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """`{"overall": {...}, "by_type": {type: {...}}}`."""
        return {"overall": self.overall.to_json(), "by_type": {n: d.to_json() for n, d in self.by_type.items()}}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        by_type = {name: Difference.from_json(given) for name, given in tree["by_type"].items()}
        return cls(Difference.from_json(tree["overall"]), by_type)


@dataclass(frozen=True)
class Effect:
    """A difference as it is judged: over the seeds where they were compared, else that of a single run.

    is_shown: whether it is told from 0 at 5%, corrected for the number of question types where it is of one of them.
    single: the difference of a single run; None where it is over seeds. is_of_first: whether that is the first of
    several seeds, which were not all evaluated for it.
    """

    estimate: Estimate
    is_shown: bool
    single: Difference | None
    is_of_first: bool = False


@dataclass(frozen=True)
class ComparedRun:
    """A run that was compared. taken_for: what, in words. training_seed: its `training.seed`."""

    folder: str
    taken_for: str
    training_seed: int


@dataclass(frozen=True)
class Comparison:
    """A run with the prefix on against others, on the questions of a split.

    has_prefix: whether the run was trained with one. runs: this one and the others. against: `off`, `shuffled` and
    `blank` of this run, `NAME off` and `NAME shuffled` of each of its encoders, `control`, `without NAME`, and other
    runs by their folder's name; as many as there are. seeds: None with one run, and one of each control at most.
    answers: what is asked and answered in each question type; `all` without types. encoders: the names of the run's
    art encoders where it has several; left out of the JSON where there are none. shuffled_over: with shuffled prefixes
    against `control` and `off`: what another painting's prefix adds. notes: what is to be kept in mind of how it was
    evaluated.
    """

    split: str
    metric: str
    checkpoint: str
    has_prefix: bool
    runs: tuple[ComparedRun, ...]
    against: dict[str, Differences]
    seeds: Seeds | None
    answers: dict[str, AnswerSummary]
    encoders: tuple[str, ...] = ()
    shuffled_over: dict[str, Differences] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def effect(self, name: str, question_type: str | None = None) -> Effect | None:
        """What the run gains over one of `against`, on a question type or on all together; None where it is unknown."""
        return _effect(None if self.seeds is None else self.seeds.against, self.against, name, question_type)

    def effect_of_shuffled(self, baseline: str, question_type: str | None = None) -> Effect | None:
        """What shuffled prefixes gain over one of `shuffled_over`."""
        of_seeds = None if self.seeds is None else self.seeds.shuffled_over
        return _effect(of_seeds, self.shuffled_over, baseline, question_type)

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, in plain values."""
        return {
            **{name: value for name, value in vars(self).items() if name != "encoders" or value},
            "runs": [vars(run) for run in self.runs],
            "against": {name: differences.to_json() for name, differences in self.against.items()},
            "shuffled_over": {name: differences.to_json() for name, differences in self.shuffled_over.items()},
            "seeds": None if self.seeds is None else self.seeds.to_json(),
            "answers": {name: summary.to_json() for name, summary in self.answers.items()},
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(
            **{
                **tree,
                "runs": tuple(ComparedRun(**run) for run in tree["runs"]),
                **{key: tuple(str(text) for text in tree.get(key, ())) for key in ("encoders", "notes")},
                **{
                    key: {name: Differences.from_json(given) for name, given in tree.get(key, {}).items()}
                    for key in ("against", "shuffled_over")
                },
                "seeds": None if tree["seeds"] is None else Seeds.from_json(tree["seeds"]),
                "answers": {name: AnswerSummary.from_json(given) for name, given in tree["answers"].items()},
            }
        )


def _effect(
    of_seeds: Mapping[str, SeedSpreads] | None,
    of_first: Mapping[str, Differences],
    name: str,
    question_type: str | None,
) -> Effect | None:
    spreads, single = None if of_seeds is None else of_seeds.get(name), of_first.get(name)
    if spreads is not None:
        spread = spreads.overall if question_type is None else spreads.by_type.get(question_type)
        if spread is not None:
            return Effect(Estimate(spread.mean, spread.low, spread.high), spread.is_shown, None)
    elif single is not None:
        one = single.overall if question_type is None else single.by_type.get(question_type)
        if one is not None:
            return Effect(one.difference, one.is_significant, one, is_of_first=of_seeds is not None)
    return None


def compare_values(
    with_Q: Floats,
    without: Mapping[str, Floats],
    painting_Q: NDArray[Any],
    question_types: Sequence[str],
    resampling: Resampling,
) -> dict[str, Differences]:
    """Differences of each question's score `with_Q` and those of each entry of `without`, (Q,) each.

    painting_Q: each question's painting, by numbers or names. Questions of the type '' are `untyped` where others have
    a type.
    """
    if not without:
        return {}
    without_QM = np.column_stack(list(without.values()))
    with_QM = np.broadcast_to(with_Q[:, None], without_QM.shape)
    overall = paired_differences(with_QM, without_QM, painting_Q, resampling)
    rows_of_types = rows_by_type(question_types)
    by_type = {
        name: paired_differences(with_QM[rows], without_QM[rows], painting_Q[rows], resampling, len(rows_of_types))
        for name, rows in rows_of_types.items()
    }
    result = {}
    for place, name in enumerate(without):
        of_types = {kind: differences[place] for kind, differences in by_type.items()}
        corrected = holm([difference.p_value for difference in of_types.values()])
        of_types = {
            kind: replace(difference, p_holm=p_holm)
            for (kind, difference), p_holm in zip(of_types.items(), corrected, strict=True)
        }
        result[name] = Differences(overall[place], of_types)
    return result


def paired_differences(
    with_QM: Floats, without_QM: Floats, painting_Q: NDArray[Any], resampling: Resampling, tests: int = 1
) -> list[Difference]:
    """The difference of each of M pairs of columns, all on the same questions and with the same draws.

    tests: the number of question types where they are on one of them, for what is detectable.
    """
    differences_QM = with_QM - without_QM
    sums_IM, size_I = sum_by_painting(differences_QM, painting_Q)
    mean_M = differences_QM.mean(axis=0)
    low_M, high_M = mean_intervals(sums_IM, size_I, -1.0, resampling.samples, resampling.seed)
    p_M = sign_flip_p_values(sums_IM, resampling.seed)
    error_M = standard_errors(sums_IM, size_I)
    return [
        Difference(
            questions=len(painting_Q),
            paintings=len(size_I),
            with_value=float(with_QM[:, m].mean()),
            without_value=float(without_QM[:, m].mean()),
            difference=Estimate(float(mean_M[m]), float(low_M[m]), float(high_M[m])),
            p_value=float(p_M[m]),
            p_holm=None,
            detectable=detectable_difference(float(error_M[m]), len(size_I), int((sums_IM[:, m] != 0).sum()), tests),
            wins=int((differences_QM[:, m] > 0).sum()),
            losses=int((differences_QM[:, m] < 0).sum()),
        )
        for m in range(len(mean_M))
    ]


def standard_errors(sums_IM: Floats, size_I: NDArray[np.int64]) -> Floats:
    """(M,) of a mean over questions that cluster in paintings: the cluster-robust one, with the factor I / (I - 1).

    0 for a single painting. (Cameron, Gelbach and Miller, Bootstrap-Based Improvements for Inference with Clustered
    Errors, 2008, for a regression on the constant alone.)
    """
    paintings, questions = len(size_I), size_I.sum()
    residuals_IM = sums_IM - size_I[:, None] * (sums_IM.sum(axis=0) / questions)
    factor = paintings / max(1, paintings - 1)
    errors_M: Floats = np.sqrt(factor * (residuals_IM**2).sum(axis=0)) / questions
    return errors_M


def detectable_difference(standard_error: float, paintings: int, differing: int, tests: int = 1) -> float | None:
    """The smallest true difference that would be significant at 5% in 80% of such sets of paintings.

    (1.96 + 0.84) standard errors (Bloom, Minimum Detectable Effects, 1995): it takes the difference for normally
    distributed, and its spread for what it was found to be. tests: how many Holm's correction is for; 1.96 is then the
    quantile for a p-value of 5% / tests, which is what it asks for of the smallest of them. It asks for less of the
    others, so that these would be significant more often.

    differing: paintings with a difference. Where these are fewer than `fewest_differing`, nothing could have been
    significant, and a spread that hardly showed says nothing; nor does one of 0, where all are won alike. Then it is at
    least the share of paintings of which so many are drawn in 80% of such sets: they must all differ in the same
    direction, here in all of their questions. None where there are fewer paintings.
    """
    normal = (z_of(tests) + NormalDist().inv_cdf(POWER)) * standard_error
    fewest = fewest_differing(tests)
    if differing >= fewest and standard_error > 0:
        return normal
    return None if paintings < fewest else max(normal, _share_that_shows(paintings, fewest))


def _share_that_shows(paintings: int, fewest: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        fewer = sum(math.comb(paintings, k) * share**k * (1 - share) ** (paintings - k) for k in range(fewest))
        low, high = (share, high) if 1 - fewer < POWER else (low, share)
    return high
