"""Reads a CSV file into records with their physical line numbers, and says what is wrong with it."""

import codecs
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from artkv.datasets.problems import Problem, quoted
from artkv.datasets.table_form import DELIMITERS, PLAIN, TableForm
from artkv.datasets.table_text import decode_lines, delimiter_of, header_fields
from artkv.errors import UserError
from artkv.reading import printable, read_regular, remedy_for, unseen_character

REQUIRED_COLUMNS = ("image", "question", "answer")
OPTIONAL_COLUMNS = ("question_id", "question_type")

# Bytes. A million questions have some hundred million.
MOST_CSV_BYTES = 2 * 2**30
# Characters. A language model's positions end long before; a file that passes a limit is no table of questions.
MOST_FIELD_CHARACTERS = 100_000
_MOST_ROW_CHARACTERS = 1_000_000
_MOST_ROW_LINES = 1000
# After each broken quote the lines below are read anew, which this bounds.
_MOST_BROKEN_ROWS = 1000
_MOST_COLUMNS_SHOWN = 20
# Python's own limit, 131,072, which other libraries of the process may change, is not what a message should depend on.
_PYTHONS_FIELD_LIMIT = 2**30


@dataclass(frozen=True)
class Record:
    """One row of a CSV file: the known columns' cells, stripped, by what they are for, and its first physical line."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Records:
    """What could be read of a CSV file, with every problem of its form.

    columns: the known columns that the header has, by what they are for. records: the rows whose form is right.
    sha256: of the file's bytes, in hex; '' where they are no text.
    """

    columns: tuple[str, ...]
    records: list[Record]
    problems: list[Problem]
    sha256: str = ""


def read_records(
    path: Path,
    required: Sequence[str] = REQUIRED_COLUMNS,
    optional: Sequence[str] = OPTIONAL_COLUMNS,
    form: TableForm = PLAIN,
) -> Records:
    """Reads as much of the file as can be read; nothing that is wrong with its form raises.

    Values are text: NA, None, null and nan are ordinary answers. required: the columns that the header must have, by
    what they are for. optional: those that are read where it has them. form: how the table is written; its limit is
    none here.
    Raises `UserError` only when the file itself cannot be opened.
    """
    problems: list[Problem] = []
    table = _open_table(path, required, form, problems)
    if table is None:
        return Records((), [], problems)
    lines, unreadable, delimiter, sha256 = table
    rows = _rows(path, lines, delimiter, problems)
    header_line, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    names = _check_header(path, header_line, header, (required, optional), form, problems)
    places = [(role, header.index(name)) for role, name in names.items()]
    records = []
    for line, row in rows:
        if 1 < len(row) == len(header) and [name.strip() for name in row] == header:
            told = "the row is the header once more, as where one table was put behind another; remove it"
            problems.append(Problem(path, line, told))
        elif len(row) != len(header):
            counts = f"the row has {len(row)} fields, the header {len(header)}"
            problems.append(Problem(path, line, f"{counts}; {_of_fields(row, header, delimiter)}"))
        elif line not in unreadable:
            records.append(Record(line, {role: row[place].strip() for role, place in places}))
    if not records and not problems:
        what = "question" if "question" in required else "row"
        problems.append(Problem(path, header_line, f"no rows below the header; add at least one {what}"))
    return Records(tuple(names), records, problems, sha256)


def _open_table(
    path: Path, required: Sequence[str], form: TableForm, problems: list[Problem]
) -> tuple[list[str], set[int], str, str] | None:
    """Its lines, the numbers of those that cannot be read, its delimiter and its SHA-256; None where it is no text."""
    try:
        data = read_regular(path, MOST_CSV_BYTES)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        remedy = remedy_for(error, "give an existing CSV file")
        raise UserError(f"{printable(path)}: {reason}; {remedy}") from None
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        needed = ",".join(str(form.name_of(role)) for role in required)
        problems.append(Problem(path, 1, f"the file is empty; it needs a header {needed}"))
        return None
    decoded = decode_lines(path, data, form, problems)
    if decoded is None:
        return None
    first = "".join(decoded[0][:1])
    if re.fullmatch(r"sep=.?\s*", first):
        told = f"the line {first.strip()} is for Excel alone, and no header; delete it"
        problems.append(Problem(path, 1, told))
        return None
    return *decoded, delimiter_of(decoded[0], form, required), hashlib.sha256(data).hexdigest()


class _RowTooLong(Exception):
    """A row that does not end within the limits."""


class _Reading:
    """The lines of a file from `start` on, for csv.reader, which asks for no more than one row needs."""

    def __init__(self, lines: list[str], start: int) -> None:
        self._lines = lines
        self.next = start  # index of the line that is read next
        self.begin_row()

    def begin_row(self) -> None:
        """Counts from here."""
        self.first = self.next
        self._characters = 0

    def __iter__(self) -> Iterator[str]:
        while self.next < len(self._lines):
            line = self._lines[self.next]
            self._characters += len(line)
            if self._characters > _MOST_ROW_CHARACTERS or self.next - self.first >= _MOST_ROW_LINES:
                raise _RowTooLong
            self.next += 1
            yield line


def _rows(path: Path, lines: list[str], delimiter: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """(first physical line, fields) of each row; blank lines are passed over.

    After a broken quote reading goes on with the line below the one where the row began, so that one
    missing quote does not hide the rest of the file.
    """
    start = num_broken = 0
    csv.field_size_limit(_PYTHONS_FIELD_LIMIT)
    while start < len(lines):
        if num_broken == _MOST_BROKEN_ROWS:
            message = f"{num_broken:,} rows above have broken quotes; mend these, the file is not read further"
            problems.append(Problem(path, start + 1, message))
            return
        reading = _Reading(lines, start)
        try:
            for row in csv.reader(reading, strict=True, delimiter=delimiter):
                longest = max(map(len, row), default=0)
                if longest > MOST_FIELD_CHARACTERS:
                    problems.append(Problem(path, reading.first + 1, _too_long(reading, longest)))
                elif row:
                    yield reading.first + 1, row
                reading.begin_row()
        except (csv.Error, _RowTooLong) as error:
            problems.append(Problem(path, reading.first + 1, _explain_broken_row(error, lines[reading.first])))
            start = reading.first + 1
            num_broken += 1
        else:
            return


def _of_fields(row: Sequence[str], header: Sequence[str], delimiter: str) -> str:
    """What to do about a row of more or fewer fields than the header has."""
    between = {character: name for name, character in DELIMITERS.items()}
    for other, name in between.items():
        if len(row) == 1 and other != delimiter and len(header_fields(row, other)) == len(header):
            return f"its fields stand between {name}s, the header's between {between[delimiter]}s; write one throughout"
    if len(row) < len(header):
        return "add the fields that are missing, or put double quotes around a text that holds a line break"
    return f"put double quotes around a text that holds a {between[delimiter]}"


def _too_long(reading: _Reading, longest: int) -> str:
    """Of a row with a field beyond the limit."""
    most = f"has {longest:,} characters, of {MOST_FIELD_CHARACTERS:,} at most"
    if reading.next - reading.first > 1:
        return f"a field of this row {most}, over several lines; shorten it, or close its double quote where it ends"
    return f"a field of this row {most}; shorten it"


def _explain_broken_row(error: Exception, line: str) -> str:
    if isinstance(error, _RowTooLong) and len(line) > _MOST_ROW_CHARACTERS:
        return f"the line has {len(line):,} characters, of {_MOST_ROW_CHARACTERS:,} at most; give a CSV file"
    if isinstance(error, _RowTooLong):
        within = f"{_MOST_ROW_LINES:,} lines and {_MOST_ROW_CHARACTERS:,} characters"
        return f'a double quote opened in this row is not closed within {within}; close it, or write a quote as ""'
    reason = str(error)
    if "unexpected end of data" in reason:
        return 'a double quote opened in this row is never closed; close it, or write a quote as ""'
    if "expected after" in reason:
        return 'text follows a closing double quote; write a quote inside a quoted text as ""'
    return f"not readable as CSV ({reason}); write it anew as CSV in UTF-8"


def _check_header(
    path: Path,
    line: int,
    header: list[str],
    known: tuple[Sequence[str], Sequence[str]],
    form: TableForm,
    problems: list[Problem],
) -> dict[str, str]:
    """The known columns that the header has: its names by what they are for."""
    required, optional = known
    problems.extend(
        Problem(path, line, f"column {quoted(name)} appears {count} times; keep one of them")
        for name, count in Counter(header).items()
        if count > 1
    )
    problems.extend(
        Problem(path, line, f"the column {quoted(name)} holds {unseen}, which cannot be seen; type its name anew")
        for name in header
        if (unseen := unseen_character(name)) is not None
    )
    names = {role: name for role in (*required, *optional) if (name := form.name_of(role)) is not None}
    # An optional one that somebody gave a name of its own is meant to be there.
    asked = [role for role in optional if role in names and names[role] != role]
    missing = [names[role] for role in (*required, *asked) if names[role] not in header]
    if missing and (between := _other_delimiter(header, form, names, required)) is not None:
        setting = f"{form.section or 'dataset'}.delimiter = {form.delimiter}"
        problems.append(
            Problem(path, line, f"{setting}, and the header's names stand between {between}s; set it to {between}")
        )
    elif missing:
        found = ", ".join(quoted(name) for name in header[:_MOST_COLUMNS_SHOWN])
        more = f" and {len(header) - _MOST_COLUMNS_SHOWN:,} more" if len(header) > _MOST_COLUMNS_SHOWN else ""
        wanted = ", ".join(quoted(name) for name in missing)
        problems.append(
            Problem(
                path,
                line,
                f"missing column{'s' if len(missing) > 1 else ''} {wanted}; the header has {found}{more}; it needs "
                f"{','.join(names[role] for role in required)}{form.or_set('columns to the names that it has')}",
            )
        )
    return {role: name for role, name in names.items() if name in header}


def _other_delimiter(
    header: Sequence[str], form: TableForm, names: Mapping[str, str], required: Sequence[str]
) -> str | None:
    """The delimiter with which the header has all columns, where another was given; None where there is none."""
    if form.delimiter == "auto":
        return None
    line = DELIMITERS[form.delimiter].join(header)
    wanted = {names[role] for role in required}
    return next((name for name, between in DELIMITERS.items() if wanted <= set(header_fields([line], between))), None)
