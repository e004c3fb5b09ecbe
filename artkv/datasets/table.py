"""The questions of one CSV file, checked, in compact columns."""

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from artkv.datasets.columns import PathColumn, StringColumn
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.pictures import picture_damage
from artkv.datasets.problems import Problem, format_problems, quoted
from artkv.datasets.records import Record, Records, read_records
from artkv.datasets.table_form import PLAIN, TableForm
from artkv.errors import UserError
from artkv.reading import is_blank, unseen_character

__all__ = ["ImageIndex", "QuestionTable", "find_problems", "read_table"]

# Decoding releases the interpreter lock. More threads than this would only hold more pictures in memory.
_MAX_DECODING_THREADS = 8
_MAX_LINES_SHOWN = 10
# What controls a terminal, or is left of another encoding; those that count as white space are read as such.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
# What spreadsheets show where a formula could not be worked out, and the formula itself.
_CELL_ERRORS = frozenset(("#REF!", "#N/A", "#NAME?", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#CALC!"))
_FORMULA = re.compile(r"=\s*[A-Z][A-Z0-9.]*\(.*\)", re.DOTALL)
_SPREADSHEET = "correct the cell, and save the table's values as CSV again"


@dataclass(frozen=True)
class QuestionTable:
    """The rows of one CSV file, in its order; a row is a question.

    path: the CSV file. questions, answers, question_ids, question_types: one text a row, stripped;
    question_types are '' without that column, question_ids the row's number, from 0, without theirs.
    line_numbers: (rows,) int64, the first physical CSV line of each row.
    painting_of_row: (rows,) int64, each row's place in painting_paths; rows of a painting need not be
    adjacent. painting_paths: the distinct pictures, in the order of their first rows.
    """

    path: Path
    questions: StringColumn
    answers: StringColumn
    question_ids: StringColumn
    question_types: StringColumn
    line_numbers: np.ndarray
    painting_of_row: np.ndarray
    painting_paths: PathColumn

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def num_paintings(self) -> int:
        return len(self.painting_paths)

    def place(self, row: int) -> str:
        """Where a row is, for messages: `file.csv:LINE`."""
        return f"{self.path}:{self.line_numbers[row]}"


@dataclass(frozen=True)
class CheckedRows:
    """The rows of one CSV file with all that is wrong with them but for the content of their pictures.

    content: the rows and their form. paths: of the pictures that were found, by their names. problems: in the order of
    lines.
    """

    csv_path: Path
    content: Records
    paths: dict[str, Path]
    problems: list[Problem]

    def table(self) -> QuestionTable:
        """The rows in columns; `UserError` that lists the problems if there are any."""
        if self.problems:
            raise UserError(format_problems(self.problems))
        records = self.content.records
        paintings: dict[Path, int] = {}
        painting_of_row = [paintings.setdefault(self.paths[r.cells["image"]], len(paintings)) for r in records]
        return QuestionTable(
            path=self.csv_path,
            questions=StringColumn(record.cells["question"] for record in records),
            answers=StringColumn(record.cells["answer"] for record in records),
            question_ids=StringColumn(r.cells.get("question_id", str(row)) for row, r in enumerate(records)),
            question_types=StringColumn(record.cells.get("question_type", "") for record in records),
            line_numbers=np.array([record.line for record in records], dtype=np.int64),
            painting_of_row=np.array(painting_of_row, dtype=np.int64),
            painting_paths=PathColumn(paintings),
        )

    def damaged_pictures(
        self,
        max_pixels: int,
        share: tuple[int, int] = (0, 1),
        is_decodable: Callable[[Path], bool] = lambda path: False,
    ) -> list[Problem]:
        """A problem for each picture that cannot be decoded; see `find_problems`."""
        damage = partial(picture_damage, max_pixels=max_pixels)
        return _damaged_pictures(self.csv_path, self.content.records, self.paths, share, is_decodable, damage)


def check_rows(csv_path: Path, images: ImageIndex, form: TableForm = PLAIN) -> CheckedRows:
    """Reads a CSV file and checks all but the content of its pictures, which are found and not decoded.

    Raises `UserError` if the file itself cannot be opened.
    """
    csv_path = Path(csv_path)
    content = read_records(csv_path, form=form)
    if form.limit is not None:
        content = replace(content, records=_of_first_paintings(content.records, form.limit))
    problems = [*content.problems]
    problems += _text_problems(csv_path, content)
    paths, picture_problems = _find_pictures(csv_path, content.records, images)
    problems += picture_problems
    return CheckedRows(csv_path, content, paths, sorted(problems, key=lambda problem: problem.line))


def read_table(csv_path: Path, images: ImageIndex, form: TableForm = PLAIN) -> QuestionTable:
    """Reads a CSV file; raises one `UserError` that lists everything that is wrong with it.

    Pictures are found but not decoded: `find_problems` does that.
    """
    return check_rows(csv_path, images, form).table()


def find_problems(
    csv_path: Path,
    images: ImageIndex,
    share: tuple[int, int] = (0, 1),
    is_decodable: Callable[[Path], bool] = lambda path: False,
    form: TableForm = PLAIN,
) -> list[Problem]:
    """Everything that is wrong with a CSV file and its pictures, in the order of its lines.

    A picture's problem is told once, at the first row that names it. Each distinct picture is decoded
    once, in threads, behind a progress bar if stderr is a terminal. With a share of (rank, world size)
    only every world size'th picture is: all ranks' answers together are the whole. Pictures of which
    `is_decodable` says so are passed over.
    Raises `UserError` if the CSV file itself cannot be opened.
    """
    rows = check_rows(csv_path, images, form)
    problems = rows.problems + rows.damaged_pictures(images.max_pixels, share, is_decodable)
    return sorted(problems, key=lambda problem: problem.line)


def _of_first_paintings(records: list[Record], limit: int) -> list[Record]:
    """The rows of the first pictures that are named."""
    names = list(dict.fromkeys(record.cells.get("image", "") for record in records))[:limit]
    first = set(names)
    return [record for record in records if record.cells.get("image", "") in first]


def spreadsheet_leftover(cell: str) -> str | None:
    """What a cell holds of a spreadsheet instead of a text: an error or a formula; None where it is a text."""
    if cell[:1] == "#" and cell in _CELL_ERRORS:
        return "a spreadsheet's error"
    return "a spreadsheet's formula" if cell[:1] == "=" and _FORMULA.fullmatch(cell) else None


def _text_problems(csv_path: Path, content: Records) -> list[Problem]:
    problems: list[Problem] = []
    line_of_id: dict[str, int] = {}
    for record in content.records:
        problems.extend(
            Problem(csv_path, record.line, f"empty {name}; fill it in or remove the row")
            for name in content.columns
            if not record.cells[name] and name != "question_type"
        )
        problems.extend(
            Problem(csv_path, record.line, f"{name} {quoted(cell)} is {what}; {_SPREADSHEET}")
            for name, cell in record.cells.items()
            if (what := spreadsheet_leftover(cell)) is not None
        )
        problems.extend(
            Problem(
                csv_path,
                record.line,
                f"{name} {quoted(cell)} holds nothing that can be seen, but {unseen_character(cell)}; fill it in or "
                "remove the row",
            )
            for name, cell in record.cells.items()
            if cell and is_blank(cell)
        )
        problems.extend(
            Problem(
                csv_path,
                record.line,
                f"{name} {quoted(cell)} holds the control character {found[0]!r}; {_remedy_for(found[0])}",
            )
            for name, cell in record.cells.items()
            if name != "image" and (found := _CONTROLS.search(cell)) is not None
        )
        answer = record.cells.get("answer", "")
        if "\n" in answer or "\r" in answer:
            problems.append(
                Problem(
                    csv_path,
                    record.line,
                    f"answer {quoted(answer)} holds a line break, where a generated answer would end; "
                    "put it on one line",
                )
            )
        question_id = record.cells.get("question_id")
        if question_id:
            first = line_of_id.setdefault(question_id, record.line)
            if first != record.line:
                message = f"question_id {quoted(question_id)} was used in line {first}; give each row its own"
                problems.append(Problem(csv_path, record.line, message))
    return problems


def _remedy_for(control: str) -> str:
    """What to do about a control character: the second set of them is where Windows has its quotes and dashes."""
    windows = ", or set dataset.encoding to cp1252 if Windows wrote the file" if control >= "\x80" else ""
    return f"write the text without it{windows}"


def _find_pictures(csv_path: Path, records: list[Record], images: ImageIndex) -> tuple[dict[str, Path], list[Problem]]:
    """The path of each picture that is named and found, and a problem for each that is not."""
    paths: dict[str, Path] = {}
    problems = []
    for name, lines in _lines_by(record.cells.get("image", "") for record in records).items():
        if not name:
            continue
        try:
            paths[name] = images.find(name)
        except UserError as error:
            at = [records[row].line for row in lines]
            problems.append(Problem(csv_path, at[0], f"{error}{_also(at)}"))
    return paths, problems


def _damaged_pictures(
    csv_path: Path,
    records: list[Record],
    paths: dict[str, Path],
    share: tuple[int, int],
    is_decodable: Callable[[Path], bool],
    damage_of: Callable[[Path], str | None],
) -> list[Problem]:
    rank, world_size = share
    all_rows = _lines_by(paths.get(record.cells.get("image", "")) for record in records)
    all_rows.pop(None, None)
    own = list(all_rows.items())[rank::world_size]
    rows_of_path = {path: rows for path, rows in own if not is_decodable(path)}
    threads = min(_MAX_DECODING_THREADS, os.cpu_count() or 1)
    problems = []
    with ThreadPoolExecutor(threads) as pool:
        damages = pool.map(damage_of, rows_of_path)
        progress = tqdm(
            damages,
            total=len(rows_of_path),
            desc="checking pictures",
            unit="picture",
            disable=True if rank or not rows_of_path else None,  # None: a bar only if stderr is a terminal
        )
        for damage, rows in zip(progress, rows_of_path.values(), strict=True):
            if damage:
                at = [records[row].line for row in rows]
                problems.append(Problem(csv_path, at[0], f"{damage}{_also(at)}"))
    return problems


def _lines_by(keys: Iterable) -> dict:
    """The places of each distinct key, in the order of first appearance."""
    places: dict = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    return places


def _also(lines: list[int]) -> str:
    if len(lines) == 1:
        return ""
    shown = ", ".join(str(line) for line in lines[1 : _MAX_LINES_SHOWN + 1])
    more = f" and {len(lines) - 1 - _MAX_LINES_SHOWN} more" if len(lines) - 1 > _MAX_LINES_SHOWN else ""
    return f" (also named in line{'s' if len(lines) > 2 else ''} {shown}{more})"
