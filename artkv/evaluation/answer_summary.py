"""What a question type asks for and what it gets: frequent answers, what guessing them scores, what is confused."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from typing_extensions import Self

from artkv.evaluation.scores import UNTYPED, rows_by_type, score_pairs

# Of a type that has no types beside it.
ALL = "all"
MOST_SHOWN = 5
# With more different answers, a table of confusions is nothing to look at.
FEW_ANSWERS = 12
OTHER = "other"


@dataclass(frozen=True)
class Majority:
    """The most frequent answer, and what it scores when it is given to all questions.

    source: `train`, the training split's most frequent answer to this type, or `split`, that of the scored split.
    """

    answer: str
    value: float
    source: str


@dataclass(frozen=True)
class Frequency:
    """How often an answer is the right one, how often it is predicted, and how often both."""

    answer: str
    asked: int
    predicted: int
    right: int


@dataclass(frozen=True)
class Confusion:
    """counts[a][p]: questions with the answer `answers[a]` to which `answers[p]` was predicted; last, any other."""

    answers: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AnswerSummary:
    """Of a question type. frequencies: of the most frequent answers. confusion: None where there are many answers."""

    majority: Majority
    frequencies: tuple[Frequency, ...]
    confusion: Confusion | None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, in plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        confusion = tree["confusion"]
        if confusion is not None:
            confusion = Confusion(tuple(confusion["answers"]), tuple(tuple(row) for row in confusion["counts"]))
        frequencies = tuple(Frequency(**given) for given in tree["frequencies"])
        return cls(Majority(**tree["majority"]), frequencies, confusion)

    def worst_confusion(self) -> tuple[str, str, int] | None:
        """The answer, the other one that was predicted for it most often, and how often; None where none was."""
        if self.confusion is None:
            return None
        names = (*self.confusion.answers, OTHER)
        wrong = [
            (count, -row, -column)
            for row, counts in enumerate(self.confusion.counts)
            for column, count in enumerate(counts)
            if count and row != column
        ]
        if not wrong:
            return None
        count, row, column = max(wrong)
        return names[-row], names[-column], count


def most_frequent_answers(answers: Iterable[str], question_types: Iterable[str]) -> dict[str, str]:
    """The most frequent answer to each question type, lower-cased; `untyped` is the type of ''."""
    counts: dict[str, Counter[str]] = {}
    for answer, kind in zip(answers, question_types, strict=True):
        counts.setdefault(kind or UNTYPED, Counter())[answer.lower()] += 1
    return {kind: _by_frequency(counter)[0] for kind, counter in counts.items()}


def summarize_answers(
    predictions: Sequence[str],
    answers: Sequence[str],
    question_types: Sequence[str],
    training: Mapping[str, str],
    metric: str,
) -> dict[str, AnswerSummary]:
    """A summary for each question type, or one named `all` where no question has one; texts count lower-cased.

    training: the training split's most frequent answers, by `most_frequent_answers`. A type that is not among them
    has the majority of the answers given here.
    """
    types = {name: rows.tolist() for name, rows in rows_by_type(question_types).items()}
    result = {}
    for name, rows in (types or {ALL: list(range(len(answers)))}).items():
        expected = [answers[row].lower() for row in rows]
        predicted = [predictions[row].lower() for row in rows]
        asked_counts, predicted_counts = Counter(expected), Counter(predicted)
        pairs = Counter(zip(expected, predicted, strict=True))
        names = _by_frequency(asked_counts)
        known = training.get(UNTYPED if name == ALL else name)
        guess = names[0] if known is None else known
        value = float(score_pairs([guess] * len(rows), expected, [metric]).mean())
        frequencies = tuple(
            Frequency(answer, asked_counts[answer], predicted_counts[answer], pairs[answer, answer])
            for answer in names[:MOST_SHOWN]
        )
        confusion = _confusion(names, asked_counts, pairs) if len(names) <= FEW_ANSWERS else None
        result[name] = AnswerSummary(
            Majority(guess, value, "split" if known is None else "train"), frequencies, confusion
        )
    return result


def _confusion(names: list[str], asked: Counter[str], pairs: Counter[tuple[str, str]]) -> Confusion:
    rows = []
    for answer in names:
        counts = [pairs[answer, prediction] for prediction in names]
        rows.append((*counts, asked[answer] - sum(counts)))
    return Confusion(tuple(names), tuple(rows))


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda answer: (-counts[answer], answer))
