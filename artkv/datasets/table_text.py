"""The lines of a table's file, out of its bytes, and what keeps them from being text."""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from artkv.datasets.bytes_as_text import describe_damage, likely_encoding
from artkv.datasets.problems import Problem
from artkv.datasets.table_form import DELIMITERS, TableForm
from artkv.file_kinds import no_text_kind

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_lines(
    path: Path, data: bytes, form: TableForm, problems: list[Problem]
) -> tuple[list[str], set[int]] | None:
    """The physical lines as text, and the numbers of those that are none, each of which is a part of a problem.

    None where the file is no text of the form's encoding at all, which is a problem too.
    """
    kind = "UTF-32" if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) else no_text_kind(data)
    if kind is not None:
        problems.append(Problem(path, 1, f"the file is {kind}; save the table as CSV, in UTF-8"))
        return None
    if (wrong := _other_encoding(data, form)) is not None:
        problems.append(Problem(path, 1, wrong))
        return None
    if form.encoding == "utf-8":
        # Bytes that are none of UTF-8 become halves of characters, so that the lines without them can be read.
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    else:
        try:
            text = data.decode(utf16_codec(data) if form.encoding == "utf-16" else form.encoding)
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            what = f"what stands at byte {error.start + 1:,} of the file is not {form.encoding} ({error.reason})"
            problems.append(Problem(path, line, f"{what}; set {form.section}.encoding to the one that it is in"))
            return None
    # newline="": lines end at \n, \r or \r\n and keep their ends, as csv.reader wants them. (splitlines
    # would also cut at form feeds and Unicode separators inside a question.)
    lines = list(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    if "\0" not in text and _is_utf8(text):
        return lines, set()
    return lines, _unreadable(path, lines, form, problems)


def delimiter_of(lines: Sequence[str], form: TableForm, required: Sequence[str]) -> str:
    """The character between fields: of `auto` the one that gives a header with all columns, or with the most."""
    if form.delimiter != "auto":
        return DELIMITERS[form.delimiter]
    headers = {delimiter: header_fields(lines, delimiter) for delimiter in DELIMITERS.values()}
    wanted = {form.name_of(role) for role in required}
    whole = [delimiter for delimiter, fields in headers.items() if wanted <= set(fields)]
    return whole[0] if whole else max(headers, key=lambda delimiter: len(headers[delimiter]))


def header_fields(lines: Sequence[str], delimiter: str) -> list[str]:
    """The names in the first line that is not blank, if this is what stands between them."""
    first = next((line for line in lines if line.strip()), "")
    try:
        return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error:
        return []


def looks_like_utf16(data: bytes) -> bool:
    """Whether it has UTF-16's mark, or every second byte is NUL, as of Latin letters in UTF-16 without it."""
    start = data[:64]
    return data.startswith(_UTF16_MARKS) or (
        len(start) > 3 and any(set(start[half::2]) == {0} and 0 not in start[1 - half :: 2] for half in (0, 1))
    )


def utf16_codec(data: bytes) -> str:
    """The codec of bytes that `looks_like_utf16`: with a mark, or in either order without."""
    if data.startswith(_UTF16_MARKS):
        return "utf-16"
    return "utf-16-be" if data[:1] == b"\0" else "utf-16-le"


def _other_encoding(data: bytes, form: TableForm) -> str | None:
    """What is wrong with the encoding of the whole file, and the remedy."""
    if form.encoding == "utf-16":
        return None if looks_like_utf16(data) else "the file is not UTF-16; set dataset.encoding to the one that it is"
    if looks_like_utf16(data):
        return f"the file is UTF-16; save it as UTF-8{form.or_set('encoding: utf-16')}"
    if form.encoding != "utf-8" and not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return None
        # Nearly any bytes are text in the others, and what they make of UTF-8 is wrong letters.
        return f"the file is UTF-8, and {form.section}.encoding = {form.encoding!r}; leave that out"
    return None


def _unreadable(path: Path, lines: list[str], form: TableForm, problems: list[Problem]) -> set[int]:
    """The numbers of the lines that are not UTF-8, which are one problem, and of those with a NUL byte, one each."""
    not_utf8: list[int] = []
    with_nul: set[int] = set()
    for index, line in enumerate(lines):
        if not _is_utf8(line):
            not_utf8.append(index + 1)
        if "\0" in line:
            problems.append(Problem(path, index + 1, "the line holds a NUL byte; save the file as plain text"))
            with_nul.add(index + 1)
            lines[index] = line.replace("\0", "")
    if not_utf8:
        number = not_utf8[0]
        first, is_last = lines[number - 1], number == len(lines)
        start = next(place for place, character in enumerate(first) if _is_byte(character))
        has_utf8 = any(ord(character) > 0x7F and not _is_byte(character) for line in lines for character in line)
        encoding = likely_encoding(lines[number - 1] for number in not_utf8)
        what = describe_damage(first, start, is_last, has_utf8, len(not_utf8) - 1, encoding)
        setting = "encoding to the one that it is in" if encoding is None else f"encoding: {encoding}"
        or_set = "" if has_utf8 else form.or_set(setting)
        problems.append(Problem(path, number, f"{what}{or_set}"))
    return with_nul.union(not_utf8)


def _is_byte(character: str) -> bool:
    """Whether it stands for a byte that is none of UTF-8."""
    return "\udc80" <= character <= "\udcff"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
