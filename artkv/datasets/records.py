"""Reads a CSV file into records with their physical line numbers, and says what is wrong with it."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artkv.errors import UserError

REQUIRED_COLUMNS = ("image", "question", "answer")
OPTIONAL_COLUMNS = ("question_id", "question_type")

_MAX_PROBLEMS_SHOWN = 50


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a CSV file, at a physical line (the first line is 1)."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def format_problems(problems: Sequence[Problem], most: int = _MAX_PROBLEMS_SHOWN) -> str:
    """The problems one a line, the first `most` of them, then how many more there are."""
    lines = [str(problem) for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"and {len(problems) - most} more")
    return "\n".join(lines)


@dataclass(frozen=True)
class Record:
    """One row of a CSV file: the known columns' cells, stripped, and the row's first physical line."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Records:
    """What could be read of a CSV file, with every problem of its form.

    columns: the known columns that the header has. records: the rows whose form is right.
    """

    columns: tuple[str, ...]
    records: list[Record]
    problems: list[Problem]


def read_records(path: Path, required: Sequence[str] = REQUIRED_COLUMNS) -> Records:
    """Reads as much of the file as can be read; nothing that is wrong with its form raises.

    Values are text: NA, None, null and nan are ordinary answers. required: the columns that the header must have.
    Raises `UserError` only when the file itself cannot be opened.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing CSV file") from None
    problems: list[Problem] = []
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        problems.append(Problem(path, 1, "the file is UTF-16; save it as UTF-8"))
        return Records((), [], problems)
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        problems.append(Problem(path, 1, f"the file is empty; it needs a header {','.join(required)}"))
        return Records((), [], problems)
    lines, unreadable = _decode_lines(path, data.removeprefix(codecs.BOM_UTF8), problems)
    rows = _rows(path, lines, problems)
    header_line, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    columns = _check_header(path, header_line, header, required, problems)
    records = []
    for line, row in rows:
        if len(row) != len(header):
            problems.append(
                Problem(
                    path,
                    line,
                    f"the row has {len(row)} fields, the header {len(header)}; "
                    "put double quotes around a text that holds a comma",
                )
            )
        elif line not in unreadable:
            records.append(Record(line, {name: row[header.index(name)].strip() for name in columns}))
    if not records and not problems:
        problems.append(Problem(path, header_line, "no rows below the header; add at least one question"))
    return Records(columns, records, problems)


def _decode_lines(path: Path, data: bytes, problems: list[Problem]) -> tuple[list[str], set[int]]:
    """The physical lines as text, and the numbers of those that are not UTF-8 or hold a NUL byte."""
    unreadable: set[int] = set()
    # newline="": lines end at \n, \r or \r\n and keep their ends, as csv.reader wants them. (splitlines
    # would also cut at form feeds and Unicode separators inside a question.)
    lines = list(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    for index, line in enumerate(lines):
        number = index + 1
        try:
            line.encode("utf-8")
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) & 0xFF
            problems.append(
                Problem(
                    path,
                    number,
                    f"byte 0x{byte:02X} at column {error.start + 1} is not UTF-8; "
                    "save the file as UTF-8 (iconv -f latin1 -t utf-8)",
                )
            )
            unreadable.add(number)
        if "\0" in line:
            problems.append(Problem(path, number, "the line holds a NUL byte; save the file as plain text"))
            unreadable.add(number)
            lines[index] = line.replace("\0", "")
    return lines, unreadable


def _rows(path: Path, lines: list[str], problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """(first physical line, fields) of each row; blank lines are passed over.

    After a broken quote reading goes on with the line below the one where the row began, so that one
    missing quote does not hide the rest of the file.
    """
    start = 0
    while start < len(lines):
        reader = csv.reader(lines[start:] if start else lines, strict=True)
        first = start + 1
        try:
            for row in reader:
                if row:
                    yield first, row
                first = start + reader.line_num + 1
        except csv.Error as error:
            problems.append(Problem(path, first, _explain_csv_error(error)))
            start = first
        else:
            return


def _explain_csv_error(error: csv.Error) -> str:
    reason = str(error)
    if "unexpected end of data" in reason or "field limit" in reason:
        return 'a double quote opened in this row is never closed; close it, or write a quote as ""'
    if "expected after" in reason:
        return 'text follows a closing double quote; write a quote inside a quoted text as ""'
    return f"not readable as CSV ({reason})"


def _check_header(
    path: Path, line: int, header: list[str], required: Sequence[str], problems: list[Problem]
) -> tuple[str, ...]:
    problems.extend(
        Problem(path, line, f"column {name!r} appears {header.count(name)} times; keep one of them")
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    )
    missing = [name for name in required if name not in header]
    if missing:
        found = ", ".join(repr(name) for name in header)
        names = ", ".join(repr(name) for name in missing)
        problems.append(
            Problem(
                path,
                line,
                f"missing column{'s' if len(missing) > 1 else ''} {names}; the header has {found}; "
                f"it needs {','.join(required)}, separated by commas",
            )
        )
    return tuple(name for name in (*required, *OPTIONAL_COLUMNS) if name in header)
