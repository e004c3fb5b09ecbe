"""The questions of a table with their pictures, and what of its rows a training could not take."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from artkv.datasets.image_index import ImageIndex
from artkv.datasets.problems import Problem, quoted
from artkv.datasets.records import Record
from artkv.errors import UserError
from artkv.starting.headers import NEEDED
from artkv.starting.tables import Table


@dataclass(frozen=True)
class Question:
    """A row that a training can take. picture: its path. question_type, question_id: '' where there is none."""

    picture: Path
    question: str
    answer: str
    question_type: str = ""
    question_id: str = ""


def read_questions(table: Table, images: ImageIndex) -> tuple[list[Question], list[Problem]]:
    """The table's right rows, in its order, and a problem for each of the others, as `artkv check` tells them."""
    rows, problems = table.rows()
    pictures: dict[str, Path | str] = {}
    questions = []
    for row in rows:
        name = row.cells.get("image", "")
        if name and name not in pictures:
            try:
                pictures[name] = images.find(name)
            except UserError as error:
                pictures[name] = str(error)
        wrong = [*_wrong_texts(row)]
        picture = pictures.get(name)
        if isinstance(picture, str):
            wrong.append(picture)
        if wrong or not isinstance(picture, Path):
            problems += [Problem(table.path, row.line, text) for text in wrong]
            continue
        cells = row.cells
        questions.append(
            Question(
                picture,
                cells["question"],
                cells["answer"],
                cells.get("question_type", ""),
                cells.get("question_id", ""),
            )
        )
    return questions, sorted(problems, key=lambda problem: problem.line)


def have_own_ids(questions: Sequence[Question]) -> bool:
    """Whether each has an id that no other has."""
    counts = Counter(question.question_id for question in questions)
    return "" not in counts and all(count == 1 for count in counts.values())


def paintings(questions: Iterable[Question]) -> list[Path]:
    """Their pictures, each once, in the order in which they are named."""
    return list(dict.fromkeys(question.picture for question in questions))


def _wrong_texts(row: Record) -> Iterable[str]:
    for role in NEEDED:
        if not row.cells.get(role):
            yield f"empty {role}; fill it in or remove the row"
    answer = row.cells.get("answer", "")
    if "\n" in answer or "\r" in answer:
        yield f"answer {quoted(answer)} holds a line break, where a generated answer would end; put it on one line"
