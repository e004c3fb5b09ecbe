"""Any bytes are read as records or told, in bounded time."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artkv.datasets.problems import kind_of
from artkv.datasets.records import Records, read_records
from artkv.errors import UserError

HEADER = b"image,question,answer\n"


def read(folder: Path, data: bytes) -> Records:
    path = folder / "data.csv"
    path.write_bytes(data)
    return read_records(path)


# Pieces that are likely to break a reader, in any order.
PIECES = st.sampled_from(
    [b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xe9", b"a.jpg", b"x" * 500, b"\x1b", b"\xef\xbb\xbf"]
)  # fmt: skip
QUICK = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(has_header=st.booleans(), data=st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=60).map(b"".join)))
def test_any_bytes_are_records_or_told(tmp_path: Path, has_header: bool, data: bytes) -> None:
    found = read(tmp_path, (HEADER if has_header else b"") + data)
    assert found.records or found.problems
    assert all("; " in problem.message and str(problem).isprintable() for problem in found.problems)
    assert all(set(record.cells) == set(found.columns) for record in found.records)


@QUICK
@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 3), min_size=1)
)
def test_what_a_spreadsheet_writes_comes_back(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    text = "".join(",".join(map(cell, row)) + "\n" for row in rows)
    found = read(tmp_path, HEADER + text.encode())
    assert found.problems == []
    assert [tuple(record.cells.values()) for record in found.records] == [tuple(map(str.strip, row)) for row in rows]


@pytest.mark.parametrize(
    "line",
    [b'"\n', b'x""","\n', b'"""\n', b'a""","' + b"x" * 90 + b"\n", b"caf\xe9,q,a\n", b"\0\n", b'a,"b"c,d\n'],
    ids=repr,
)
def test_a_hundred_thousand_bad_lines_take_seconds(tmp_path: Path, line: bytes) -> None:
    began = time.process_time()
    found = read(tmp_path, HEADER + line * 100_000)
    # Of bytes that are not UTF-8 one tells of all.
    assert len(found.problems) >= (1 if b"\xe9" in line else 1000)
    assert len({kind_of(problem) for problem in found.problems}) <= 3
    # The worst takes 0.6 s here; read anew from each line to the end, it would be hours.
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER + b"a,b" + b"x" * 100_000 + b",c\n", "a field of this row has 100,001 characters, of 100,000 at most"),
        (HEADER + b'a,"' + (b"x" * 199 + b"\n") * 900 + b'",c\n', "has 180,000 characters, of 100,000 at most, over"),
        (HEADER + b"x" * 1_000_001, "the line has 1,000,001 characters, of 1,000,000 at most"),
        (HEADER + b'a,"b\n', "is never closed; close it"),
        (HEADER + b'a""","\n' * 1001, "is not closed within 1,000 lines and 1,000,000 characters; close it"),
        ("image,question,answer\na,b,c\n".encode("utf-16-le"), "the file is UTF-16"),
        ("image,question,answer\na,b,c\n".encode("utf-16-be"), "the file is UTF-16"),
        (b"im\x1bage,question,answer\na,b,c\n", "the header has 'im\\x1bage', 'question'"),
        (b"image,image\x07,question,answer,answer\na,b,c,d,e\n", "column 'answer' appears 2 times"),
        ("image,question,answer\na,b,c\n".encode("utf-32-le"), "the line holds a NUL"),
        (HEADER + b"a,\xe9,c\n" * 3, "byte 0xE9 at column 3 is not UTF-8, and 2 more lines are not; save the file as"),
        (b"x," * 3000 + b"\n", "column 'x' appears 3000 times"),
        (b",".join(b"c%d" % n for n in range(3000)) + b"\n", "'c19' and 2,980 more; it needs image"),
        (b"q" * 5000 + b",w\n", "... (5,000 characters), 'w'; it needs image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_message_says_what_it_is(tmp_path: Path, data: bytes, message: str) -> None:
    told = "\n".join(map(str, read(tmp_path, data).problems))
    assert message in told


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(3 * 2**30)
    for path, reason in [
        (tmp_path / "pipe.csv", "is a pipe, where a regular file belongs"),
        (tmp_path, "is a folder, where"),
        (Path("/dev/zero"), "is a device, where"),
        (tmp_path / "large.csv", "has 3,221,225,472 bytes, more than the 2,147,483,648"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\x1bb.csv", r"a\x1bb.csv: cannot be read (No such file"),
        (Path("a\0b"), "NUL"),
    ]:
        with pytest.raises(UserError) as caught:
            read_records(path)
        assert reason in str(caught.value)
        assert str(caught.value).isprintable()
