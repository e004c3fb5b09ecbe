"""Scores of predicted answers, with intervals that respect that questions share paintings.

All scores are fractions from 0 to 1. Letters in array names are explained in `artkv.batch`; I are paintings, or
whatever else the questions cluster in.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU
from typing_extensions import Self

from artkv.evaluation.calibration import Calibration, calibrate
from artkv.evaluation.extra_scores import EXTRA_METRICS, score_extras
from artkv.evaluation.resampling import mean_intervals, sum_by_painting
from artkv.reading import object_at

if TYPE_CHECKING:  # torch takes seconds
    from artkv.datasets.table import QuestionTable

METRICS = ("exact_match", "bleu", "bleu_artquest", "token_f1")
# Exact match of what is chosen among candidates, not of what is generated.
ACCURACY = "accuracy"
UNTYPED = "untyped"

# effective_order: answers are mostly shorter than four words, and have no 4-grams to match.
_BLEU = BLEU(effective_order=True)


@dataclass(frozen=True)
class Estimate:
    """A mean score, or a difference of two, with its 95% interval `low` to `high`, see `mean_intervals`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupScores:
    """The scores of a group of questions.

    count: questions. clusters: paintings among them (questions, where no clusters were given).
    bleu: the prediction as hypothesis, the answer as reference. bleu_artquest: the other way round,
    as ArtQuest's evaluator computes it; compare this one with published ArtQuest numbers.
    The last ones are `EXTRA_METRICS`, None where they were not asked for.
    """

    count: int
    clusters: int
    exact_match: Estimate
    bleu: Estimate
    bleu_artquest: Estimate
    token_f1: Estimate
    gleu: Estimate | None = None
    rouge_l: Estimate | None = None
    meteor: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """`{"count", "clusters", and for each metric that it has {"value", "low", "high"}}` in plain numbers."""
        found = {metric: getattr(self, metric) for metric in (*METRICS, *EXTRA_METRICS)}
        estimates = {metric: vars(estimate) for metric, estimate in found.items() if estimate is not None}
        return {"count": self.count, "clusters": self.clusters, **estimates}


class Choice(NamedTuple):
    """What a question chooses among its candidates.

    text: the likeliest one. probability: its share of all candidates' probabilities. gold_probability: the right
    answer's share, 0 where it is no candidate.
    """

    text: str
    probability: float
    gold_probability: float


@dataclass(frozen=True)
class ChoiceGroup:
    """How a group of questions chose.

    count, clusters: as of `GroupScores`. accuracy: whether the choice is right, as exact match has it. exact_match: of
    the generated answers to the same questions. calibration: of the choices' probabilities.
    """

    count: int
    clusters: int
    accuracy: Estimate
    exact_match: Estimate
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """`{"count", "clusters", "accuracy": {...}, "exact_match": {...}, "ece", "bins"}` in plain numbers."""
        return {
            "count": self.count,
            "clusters": self.clusters,
            "accuracy": vars(self.accuracy),
            "exact_match": vars(self.exact_match),
            **self.calibration.to_json(),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        accuracy, matches = (Estimate(**object_at(tree, name, Estimate)) for name in (ACCURACY, "exact_match"))
        return cls(tree["count"], tree["clusters"], accuracy, matches, Calibration.from_json(tree))


@dataclass(frozen=True)
class ChoiceScores:
    """How the questions of a split chose that have candidates: overall, and of each such type, in the usual order.

    candidates: by type, what was chosen among. not_candidates: questions whose right answer is none of them.
    """

    overall: ChoiceGroup
    by_type: dict[str, ChoiceGroup]
    candidates: dict[str, list[str]]
    not_candidates: int

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, in plain values; see `ChoiceGroup.to_json`."""
        return {
            "overall": self.overall.to_json(),
            "by_type": {name: group.to_json() for name, group in self.by_type.items()},
            "candidates": self.candidates,
            "not_candidates": self.not_candidates,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        by_type = {name: ChoiceGroup.from_json(given) for name, given in object_at(tree, "by_type").items()}
        return cls(ChoiceGroup.from_json(tree["overall"]), by_type, tree["candidates"], tree["not_candidates"])


@dataclass(frozen=True)
class Scores:
    """The scores of a split: overall, and of each question type, alphabetically, `untyped` last.

    by_type is empty when no question has a type. choices: None where no question was to choose.
    """

    overall: GroupScores
    by_type: dict[str, GroupScores]
    choices: ChoiceScores | None = None

    def to_json(self) -> dict[str, Any]:
        """`{"overall": {...}, "by_type": {type: {...}}}`, see `GroupScores.to_json`, and any `"choices"`."""
        choices = {} if self.choices is None else {"choices": self.choices.to_json()}
        return {
            "overall": self.overall.to_json(),
            "by_type": {name: group.to_json() for name, group in self.by_type.items()},
            **choices,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""

        def group(given: dict[str, Any]) -> GroupScores:
            metrics = [*METRICS, *(metric for metric in EXTRA_METRICS if metric in given)]
            return GroupScores(**given | {metric: Estimate(**object_at(given, metric, Estimate)) for metric in metrics})

        choices = ChoiceScores.from_json(object_at(tree, "choices")) if "choices" in tree else None
        types = object_at(tree, "by_type")
        return cls(group(object_at(tree, "overall")), {name: group(object_at(types, name)) for name in types}, choices)


def exact_match(prediction: str, answer: str) -> float:
    """1 where both sides are the same text once lower-cased, else 0.

    As ArtQuest's evaluator has it, nothing else is normalised: neither punctuation, articles nor
    white space at the ends.
    """
    return float(prediction.lower() == answer.lower())


def token_f1(prediction: str, answer: str) -> float:
    """The harmonic mean of token precision and recall, SQuAD's formula with a milder normalisation.

    Both sides are lower-cased and split at white space (which strips the ends); punctuation and
    articles stay, as they do in `exact_match`. Repeated tokens count as often as both sides have
    them. Two empty sides score 1, one empty side 0.
    """
    predicted, expected = prediction.lower().split(), answer.lower().split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """sacrebleu's sentence BLEU with effective order, of the lower-cased texts, from 0 to 1.

    Tokenisation is sacrebleu's 13a, smoothing exponential (its defaults). An empty side scores 0.
    """
    score = _BLEU.sentence_score(hypothesis.lower(), [reference.lower()]).score / 100
    return min(score, 1.0)  # sacrebleu gives 100.00000000000004 for equal texts


# Each takes a prediction and its answer.
_SCORES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "bleu": sentence_bleu,
    "bleu_artquest": lambda prediction, answer: sentence_bleu(hypothesis=answer, reference=prediction),
    "token_f1": token_f1,
    ACCURACY: exact_match,
}


def score_pairs(
    predictions: Iterable[str], answers: Iterable[str], metrics: Sequence[str] = METRICS
) -> NDArray[np.float64]:
    """(Q, M) scores in the order of `metrics`; equal pairs, of which there are many, are scored once."""
    scores = [_SCORES[metric] for metric in metrics]
    known: dict[tuple[str, str], tuple[float, ...]] = {}
    rows = []
    for pair in zip(predictions, answers, strict=True):
        if pair not in known:
            known[pair] = tuple(score(*pair) for score in scores)
        rows.append(known[pair])
    return np.array(rows, dtype=np.float64)


def score_predictions(
    predictions: Sequence[str],
    answers: Sequence[str],
    question_types: Sequence[str],
    bootstrap_samples: int,
    seed: int,
    cluster: Sequence[int] | None = None,
    extras: Sequence[str] = (),
) -> Scores:
    """Scores `predictions` against `answers`, overall and per question type.

    All sequences are Q long. `cluster` names each question's painting: the bootstrap then draws whole
    paintings with replacement, because the questions of one painting are not independent. Without
    it, questions are drawn. A type's interval draws only from the paintings that have the type.
    Questions with the type '' are reported as `untyped` where others have a type. extras: of `EXTRA_METRICS`,
    by `extra_metrics`.

    The same seed and the same clusters draw the same samples, whatever the predictions. Raises
    ValueError for no questions or lengths that differ.
    """
    count = len(predictions)
    if count == 0:
        raise ValueError("predictions is empty: there is nothing to score")
    lengths = {"answers": len(answers), "question_types": len(question_types)}
    if cluster is not None:
        lengths["cluster"] = len(cluster)
    for name, length in lengths.items():
        if length != count:
            raise ValueError(f"{name} has {length} entries but predictions has {count}")
    if bootstrap_samples < 1:
        raise ValueError(f"bootstrap_samples = {bootstrap_samples}: must be at least 1")

    values_QM = score_pairs(predictions, answers)
    parts_of_extras = score_extras(predictions, answers, extras)
    cluster_Q = np.arange(count) if cluster is None else np.asarray(cluster)

    def group(rows: NDArray[np.int64]) -> GroupScores:
        clusters, estimates = _estimate(values_QM[rows], cluster_Q[rows], bootstrap_samples, seed)
        estimates += [_share(parts[rows], cluster_Q[rows], bootstrap_samples, seed) for parts in parts_of_extras]
        return GroupScores(len(rows), clusters, **dict(zip([*METRICS, *extras], estimates, strict=True)))

    by_type = {name: group(rows) for name, rows in rows_by_type(question_types).items()}
    return Scores(group(np.arange(count)), by_type)


def score_choices(
    choices: Sequence[Choice | None],
    predictions: Sequence[str],
    table: "QuestionTable",
    candidates: dict[str, list[str]],
    bootstrap_samples: int,
    seed: int,
) -> ChoiceScores:
    """Scores what the questions of a table chose; those with None are left out.

    predictions: the generated answers. candidates: by type. Raises ValueError where no question chose.
    """
    rows = [row for row, choice in enumerate(choices) if choice is not None]
    chosen = [choice for choice in choices if choice is not None]
    if not chosen:
        raise ValueError("choices are all None: there is nothing to score")
    answers, types = [table.answers[row] for row in rows], [table.question_types[row] for row in rows]
    known = {name: {text.lower() for text in texts} for name, texts in candidates.items()}
    values_QM = np.array(
        [
            (exact_match(choice.text, answer), exact_match(predictions[row], answer))
            for row, choice, answer in zip(rows, chosen, answers, strict=True)
        ]
    )
    confidence_Q = np.array([choice.probability for choice in chosen])
    cluster_Q = table.painting_of_row[rows]

    def group(some: NDArray[np.int64]) -> ChoiceGroup:
        clusters, (accuracy, exact) = _estimate(values_QM[some], cluster_Q[some], bootstrap_samples, seed)
        calibration = calibrate(confidence_Q[some], values_QM[some, 0] == 1)
        return ChoiceGroup(len(some), clusters, accuracy, exact, calibration)

    return ChoiceScores(
        overall=group(np.arange(len(rows))),
        by_type={name: group(some) for name, some in rows_by_type(types).items()},
        candidates=candidates,
        not_candidates=sum(
            answer.lower() not in known[name or UNTYPED] for answer, name in zip(answers, types, strict=True)
        ),
    )


def rows_by_type(question_types: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The rows of each question type, alphabetically, `untyped` last; empty where no question has a type."""
    if not any(question_types):
        return {}
    types_Q = np.array([name or UNTYPED for name in question_types], dtype=object)
    return {name: np.flatnonzero(types_Q == name) for name in sorted(set(types_Q), key=_untyped_last)}


def format_table(columns: Mapping[str, Scores | ChoiceScores], metric: str = "exact_match") -> str:
    """A text table: a row for each question type and `all`, a column for each entry of `columns`.

    metric: one of `METRICS`, or of choices `accuracy` or `exact_match`.
    Cells read `value [low, high]`, `-` where that column has no such type. Returns lines without a
    newline at the end; the columns keep their order.
    """
    if metric not in _SCORES:
        raise ValueError(f"metric = {metric!r}: must be one of {', '.join(_SCORES)}")
    names = {name for scores in columns.values() for name in scores.by_type}
    groups: list[tuple[str, list[GroupScores | ChoiceGroup | None]]] = [
        (name, [scores.by_type.get(name) for scores in columns.values()]) for name in sorted(names, key=_untyped_last)
    ]
    groups.append(("all", [scores.overall for scores in columns.values()]))
    rows = [[metric, "questions", *columns]]
    for name, cells in groups:
        counts = dict.fromkeys(str(cell.count) for cell in cells if cell is not None)
        rows.append([name, "/".join(counts), *(_format_cell(cell, metric) for cell in cells)])
    return format_columns(rows)


def format_extras(columns: Mapping[str, Scores]) -> str:
    """A text table of `EXTRA_METRICS` over all questions, a row each; '' where no column has any."""
    groups = [scores.overall for scores in columns.values()]
    metrics = [metric for metric in EXTRA_METRICS if any(getattr(group, metric) for group in groups)]
    rows = [[metric, *(_format_cell(group, metric) for group in groups)] for metric in metrics]
    return format_columns([["all questions", *columns], *rows]) if rows else ""


def format_calibration(columns: Mapping[str, ChoiceScores]) -> str:
    """A text table of what the choices' probabilities are worth, over all questions that chose."""
    rows = [["choices", "accuracy", "exact match", "mean probability", "calibration error"]]
    for name, scores in columns.items():
        one = scores.overall
        numbers = (one.accuracy.value, one.exact_match.value, one.calibration.mean_confidence, one.calibration.ece)
        rows.append([name, *(f"{number:.3f}" for number in numbers)])
    return format_columns(rows)


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells below one another, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_format_row(row, widths) for row in rows)


def _untyped_last(name: str) -> tuple[bool, str]:
    return name == UNTYPED, name


def _estimate(
    values_QM: NDArray[np.float64], cluster_Q: NDArray[Any], bootstrap_samples: int, seed: int
) -> tuple[int, list[Estimate]]:
    """The number of clusters, and each score's mean with its interval."""
    sums_IM, size_I = sum_by_painting(values_QM, cluster_Q)
    low_M, high_M = mean_intervals(sums_IM, size_I, 0.0, bootstrap_samples, seed)
    columns = zip(values_QM.mean(axis=0), low_M, high_M, strict=True)
    return len(size_I), [Estimate(*map(float, column)) for column in columns]


def _share(parts: NDArray[np.float64], cluster_Q: NDArray[Any], bootstrap_samples: int, seed: int) -> Estimate:
    """The sum of `parts[:, 0]` over that of `parts[:, 1]`, with its interval over the same draws of clusters."""
    sums, _ = sum_by_painting(parts, cluster_Q)
    low, high = mean_intervals(sums[:, :1], sums[:, 1].astype(np.int64), 0.0, bootstrap_samples, seed)
    return Estimate(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low[0]), float(high[0]))


def _format_cell(group: GroupScores | ChoiceGroup | None, metric: str) -> str:
    estimate: Estimate | None = None if group is None else getattr(group, metric)
    if estimate is None:
        return "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
