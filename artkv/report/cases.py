"""The gallery's cases: a question with its answers under each ablation, and which of them differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from artkv.evaluation.scores import UNTYPED, exact_match
from artkv.report.evidence import Evaluation

# What the question alone gives away nearly always differs, and says nothing about the prefix.
_SEES_THE_PICTURE = ("on", "off", "shuffled", "control")


@dataclass(frozen=True)
class Case:
    """A question, and what was answered under each of the report's ablations, in their order.

    image: the picture's path as predictions.csv has it. is_right: as exact match has it. differs: whether an answer of
    those that saw the picture is another than the first one.
    """

    question_id: str
    image: str
    question: str
    gold: str
    question_type: str
    answers: tuple[str, ...]
    is_right: tuple[bool, ...]
    differs: bool


def join_cases(evaluations: Sequence[Evaluation]) -> list[Case]:
    """A case for each question, in the order of the CSV file."""
    seeing = [place for place, evaluation in enumerate(evaluations) if evaluation.name in _SEES_THE_PICTURE]
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
            )
        )
    return cases


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
    a bit for each right answer, and 1 where answers differ.
    """
    texts: dict[str, int] = {}
    place_of = {image: place for place, image in enumerate(pictures)}

    def text(value: str) -> int:
        return texts.setdefault(value, len(texts))

    rows = [
        [
            case.question_id,
            place_of.get(case.image, -1),
            text(case.image.rsplit("/", 1)[-1]),
            text(case.question),
            text(case.gold),
            text(case.question_type),
            [text(answer) for answer in case.answers],
            sum(is_right << place for place, is_right in enumerate(case.is_right)),
            int(case.differs),
        ]
        for case in cases
    ]
    columns = [{"name": evaluation.name, "label": evaluation.label} for evaluation in evaluations]
    return {"columns": columns, "rows": rows, "texts": list(texts)}
