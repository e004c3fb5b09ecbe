"""Questions about the paintings, as rows of an ArtQuest CSV."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from artkv.quickstart.paintings import STYLES
from artkv.quickstart.underpainting import COLOURS, SUBJECTS, TIMES

# What each type of question can be answered with. Only the style is not to be seen in a coarse look.
ANSWERS: Mapping[str, tuple[str, ...]] = {"style": STYLES, "colour": COLOURS, "subject": SUBJECTS, "time": TIMES}
VISIBLE_TYPES = ("colour", "subject", "time")

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "style": ("Which style is this?", "What is the style of this painting?", "In which style is it painted?"),
    "colour": ("Which colour is this?", "What is the main colour of this painting?", "Which colour dominates?"),
    "subject": ("Which subject is this?", "What is the subject of this painting?", "What does it show?"),
    "time": ("Which time is this?", "What is the time of day in this painting?", "When is it?"),
}


@dataclass(frozen=True)
class Wording:
    """What can be asked in a world, by type of question: the phrasings, and the answers that there are."""

    answers: Mapping[str, tuple[str, ...]]
    phrasings: Mapping[str, tuple[str, ...]]


STYLE_WORDING = Wording(ANSWERS, PHRASINGS)


@dataclass(frozen=True)
class QuestionRow:
    """One line of the CSV; the fields are its columns."""

    image: str
    question: str
    answer: str
    question_id: str
    question_type: str


def ask_about(
    image: str, attributes: Mapping[str, str], first_id: int, rng: np.random.Generator
) -> Iterator[QuestionRow]:
    """One question of each type about a painting, each in a phrasing drawn by `rng`."""
    for number, question_type in enumerate(ANSWERS):
        yield QuestionRow(
            image=image,
            question=str(rng.choice(PHRASINGS[question_type])),
            answer=attributes[question_type],
            question_id=f"q{first_id + number:06d}",
            question_type=question_type,
        )


def write_questions(path: Path, rows: Iterable[QuestionRow]) -> None:
    """Writes rows as CSV, UTF-8, with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [field.name for field in fields(QuestionRow)]
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)
