"""The gallery's cases: a question with its answers under each ablation, and which of them differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from artkv.errors import UserError
from artkv.evaluation.results import CHOICE, CHOICE_PROBABILITY, GOLD_PROBABILITY, PREFIX_OF, Predictions
from artkv.evaluation.scores import UNTYPED, exact_match
from artkv.report.evidence import Evaluation

# What the question alone gives away nearly always differs, and says nothing about the prefix.
_BLIND = "on-blank"


@dataclass(frozen=True)
class Chosen:
    """What an ablation chose among few answers. probability, of_gold: the choice's and the right answer's, if known."""

    text: str
    probability: float | None
    of_gold: float | None


@dataclass(frozen=True)
class Case:
    """A question, and what was answered under each of the report's ablations, in their order.

    image: the picture's path as predictions.csv has it. is_right: as exact match has it. differs: whether an answer of
    those that saw the picture is another than the first one. chosen: None where nothing was. prefix_of: the picture
    whose prefix was given instead of its own, '' for its own or none. Both are empty where no ablation has any.
    """

    question_id: str
    image: str
    question: str
    gold: str
    question_type: str
    answers: tuple[str, ...]
    is_right: tuple[bool, ...]
    differs: bool
    chosen: tuple[Chosen | None, ...] = ()
    prefix_of: tuple[str, ...] = ()


def join_cases(evaluations: Sequence[Evaluation]) -> list[Case]:
    """A case for each question, in the order of the CSV file."""
    choices = [_choices(evaluation.predictions) for evaluation in evaluations]
    has_choices = any(choice is not None for column in choices for choice in column)
    givers = [_givers(evaluation.predictions) for evaluation in evaluations]
    has_givers = any(giver for column in givers for giver in column)
    seeing = [place for place, evaluation in enumerate(evaluations) if evaluation.name != _BLIND]
    asked = evaluations[0].predictions.columns
    cases = []
    for row, gold in enumerate(asked["answer"]):
        answers = tuple(evaluation.predictions.columns["prediction"][row] for evaluation in evaluations)
        cases.append(
            Case(
                question_id=asked["question_id"][row],
                image=asked["image"][row],
                question=asked["question"][row],
                gold=gold,
                question_type=asked["question_type"][row] or UNTYPED,
                answers=answers,
                is_right=tuple(exact_match(answer, gold) == 1 for answer in answers),
                differs=len({answers[place] for place in seeing}) > 1,
                chosen=tuple(column[row] for column in choices) if has_choices else (),
                prefix_of=tuple(column[row] for column in givers) if has_givers else (),
            )
        )
    return cases


def _choices(predictions: Predictions) -> list[Chosen | None]:
    columns, none = predictions.columns, [""] * len(predictions)
    texts = columns.get(CHOICE, none)
    own = _probabilities(predictions, CHOICE_PROBABILITY)
    gold = _probabilities(predictions, GOLD_PROBABILITY)
    return [Chosen(*one) if one[0] else None for one in zip(texts, own, gold, strict=True)]


def _probabilities(predictions: Predictions, name: str) -> list[float | None]:
    """A column of probabilities, None where it is empty; `UserError` for what is none."""
    result: list[float | None] = []
    for row, text in enumerate(predictions.columns.get(name, [""] * len(predictions)), start=1):
        try:
            value = float(text) if text else None
        except ValueError:
            value = -1.0
        if value is not None and not 0 <= value <= 1:
            raise UserError(
                f"{predictions.path}: in row {row} {name} is {text!r:.80}, which is no number from 0 to 1; evaluate "
                "again"
            )
        result.append(value)
    return result


def _givers(predictions: Predictions) -> list[str]:
    return list(predictions.columns.get(PREFIX_OF, [""] * len(predictions)))


def telling_images(cases: Sequence[Case]) -> list[str]:
    """Every picture once, those first that were answered in different ways; the others evenly over the CSV file.

    A report that has room for some of the others then shows pictures from all over the file.
    """
    differing = list(dict.fromkeys(case.image for case in cases if case.differs))
    known = set(differing)
    others = [image for image in dict.fromkeys(case.image for case in cases) if image not in known]
    return differing + _spread(others)


def _spread(items: Sequence[str]) -> list[str]:
    """The items in an order whose every beginning is spread over them: by halving, the bits of the place reversed."""
    width = max(len(items) - 1, 1).bit_length()
    return [items[place] for place in sorted(range(len(items)), key=lambda place: f"{place:0{width}b}"[::-1])]


def gallery(evaluations: Sequence[Evaluation], cases: Sequence[Case], pictures: Sequence[str]) -> dict[str, Any]:
    """What the page's script makes the gallery of, in plain JSON; texts that repeat are stored once.

    pictures: the images that the page holds, in its order. Of `rows`: the question's id, its picture's place in
    `pictures` (-1: not in the page), the picture's name, question, gold answer, type and answers as places in `texts`,
    a bit for each right answer, 1 where answers differ; and where any question has them, for each answer the choice,
    its probability and that of the right answer (0: it did not choose), and the place in `pictures` and the name of
    the picture whose prefix it got (0: its own, or none).
    """
    texts: dict[str, int] = {}
    place_of = {image: place for place, image in enumerate(pictures)}

    def text(value: str) -> int:
        return texts.setdefault(value, len(texts))

    def name(image: str) -> int:
        return text(image.rsplit("/", 1)[-1])

    rows: list[list[Any]] = [
        [
            case.question_id,
            place_of.get(case.image, -1),
            name(case.image),
            text(case.question),
            text(case.gold),
            text(case.question_type),
            [text(answer) for answer in case.answers],
            sum(is_right << place for place, is_right in enumerate(case.is_right)),
            int(case.differs),
            [[text(one.text), one.probability, one.of_gold] if one else 0 for one in case.chosen],
            [[place_of.get(giver, -1), name(giver)] if giver else 0 for giver in case.prefix_of],
        ]
        for case in cases
    ]
    columns = [{"name": evaluation.name, "label": evaluation.label} for evaluation in evaluations]
    return {"columns": columns, "rows": rows, "texts": list(texts)}
