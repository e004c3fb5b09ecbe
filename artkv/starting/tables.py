"""Tables of questions as they lie in a folder: what they are written in, and their rows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artkv.datasets.problems import Problem, quoted
from artkv.datasets.records import MOST_CSV_BYTES, Record, read_records
from artkv.datasets.table_form import DELIMITERS, TableForm
from artkv.datasets.table_text import decode_lines, header_fields, looks_like_utf16
from artkv.errors import UserError
from artkv.file_kinds import no_text_kind
from artkv.reading import LfsPointer, parse_json, printable, read_regular, remedy_for

# A list of a million questions has some hundred.
_MOST_JSON_BYTES = 2**29
_MOST_SAMPLED = 1000
# AQUA's, which tells whether a question is from the painting or from a comment on it.
_FROM_COMMENT = "need_external_knowledge"


@dataclass(frozen=True)
class Table:
    """A file that may hold questions.

    header: the names of its columns. form: how it is written, with its columns once they are known. is_ascii: whether
    any encoding reads it alike. items: of JSON, its objects; None for a CSV file.
    """

    path: Path
    header: tuple[str, ...]
    form: TableForm
    is_ascii: bool
    items: tuple[Mapping[str, Any], ...] | None = None

    def with_columns(self, columns: Mapping[str, str]) -> "Table":
        """The same, with names of columns by what they are for; those that are not among them are not read."""
        optional = dict.fromkeys(("question_id", "question_type"))
        return replace(self, form=replace(self.form, columns={**optional, **columns}))

    def sample(self) -> dict[str, list[str]]:
        """What stands in the first rows that can be read, by the column's name."""
        if self.items is not None:
            some = self.items[:_MOST_SAMPLED]
            return {name: [str(item.get(name, "")) for item in some] for name in self.header}
        records = read_records(self.path, tuple(dict.fromkeys(self.header)), form=self.form).records[:_MOST_SAMPLED]
        return {name: [record.cells.get(name, "") for record in records] for name in self.header}

    def rows(self) -> tuple[list[Record], list[Problem]]:
        """Its questions by its columns, and what is wrong with its form. An item of JSON has its number for a line."""
        if self.items is not None:
            return _rows_of_items(self.path, self.items, self.form)
        read = read_records(self.path, form=self.form)
        return read.records, read.problems


def open_table(path: Path, delimiter: str | None, encoding: str | None) -> Table | str:
    """A file as a table, or in words why it is none.

    delimiter, encoding: as they were given; None to find them.
    """
    if path.suffix.lower() == ".json":
        return _open_json(path)
    try:
        data = read_regular(path, MOST_CSV_BYTES)
    except OSError as error:
        return _unreadable(path, error)
    form = TableForm(encoding=encoding or guess_encoding(data), section="dataset")
    problems: list[Problem] = []
    decoded = decode_lines(path, data, form, problems)
    if decoded is None and encoding is not None and no_text_kind(data) is None:
        return f"is not in the encoding that --encoding gives: {encoding}"
    if decoded is None or not any(line.strip() for line in decoded[0]):
        return problems[0].message if problems else "is empty"
    names = [delimiter] if delimiter else list(DELIMITERS)
    headers = {name: header_fields(decoded[0], DELIMITERS[name]) for name in names}
    found = max(names, key=lambda name: len(headers[name]))
    return Table(path, tuple(headers[found]), replace(form, delimiter=found), data.isascii())


def _unreadable(path: Path, error: OSError) -> str:
    """Why it is no table; `UserError` where it may well be one, without which another would be shared out."""
    reason = f"cannot be read ({error.strerror})"
    # A pipe, a device, what is far too large, a link that leads nowhere: no table.
    if (error.errno is None and not isinstance(error, LfsPointer)) or isinstance(error, FileNotFoundError):
        return reason
    remedy = remedy_for(error, "look at the disk")
    raise UserError(f"{printable(path)}: {reason}; {remedy}, or give a folder without it")


def guess_encoding(data: bytes) -> str:
    """What text is most likely written in: UTF-8 or UTF-16 where it can be, else what Windows or Latin-1 has."""
    if looks_like_utf16(data):
        return "utf-16"
    for encoding in ("utf-8", "cp1252" if re.search(rb"[\x80-\x9f]", data) else "latin-1"):
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def _open_json(path: Path) -> Table | str:
    try:
        tree = parse_json(read_regular(path, _MOST_JSON_BYTES))
    except OSError as error:
        return _unreadable(path, error)
    except ValueError as error:
        return f"is no JSON ({error!s:.200})"
    if not isinstance(tree, list):
        return f"holds {_json_kind(tree)} where a list of objects belongs, one for each question"
    if not tree:
        return "is an empty list"
    for number, item in enumerate(tree, start=1):
        if not isinstance(item, dict):
            return f"item {number:,} of its list is {_json_kind(item)} where an object belongs, as for each question"
    header = tuple(dict.fromkeys(key for item in tree[:_MOST_SAMPLED] for key in item))
    return Table(path, header, TableForm(section=None), False, tuple(tree))


def _json_kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _rows_of_items(
    path: Path, items: Sequence[Mapping[str, Any]], form: TableForm
) -> tuple[list[Record], list[Problem]]:
    rows, problems = [], []
    for number, item in enumerate(items, start=1):
        cells: dict[str, str] = {}
        wrong = list(_read_item(item, form, cells))
        problems += [Problem(path, number, text) for text in wrong]
        if not wrong:
            rows.append(Record(number, cells))
    return rows, problems


def _read_item(item: Mapping[str, Any], form: TableForm, cells: dict[str, str]) -> Iterator[str]:
    """Fills `cells`, and yields what is wrong."""
    for role, name in form.columns.items():
        if name is None:
            continue
        value = item.get(name)
        if isinstance(value, bool) and name == _FROM_COMMENT:
            cells[role] = "knowledge" if value else "visual"
        elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
            cells[role] = str(value).strip()
        elif value is None and role == "question_type":
            cells[role] = ""
        else:
            yield f"{name!r:.80} of the item is {'missing' if value is None else quoted(str(value))}; give it a text"


def check_encoding(encoding: str | None, known: Sequence[str]) -> None:
    """Raises `UserError` for an encoding that a config could not name."""
    if encoding is not None and encoding not in known:
        raise UserError(f"--encoding {encoding}: is none that a config can name; give one of {', '.join(known)}")
