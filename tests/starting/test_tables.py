"""Files become tables, whatever they are written in, or it is told why not."""

import json
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.starting.tables import Table, check_encoding, guess_encoding, open_table

COLUMNS = {"image": "image", "question": "question", "answer": "answer"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1", "cp1252"])
def test_an_encoding_is_guessed(encoding: str) -> None:
    text = "Wie heißt das Gemälde – Mädchen?" if encoding == "cp1252" else "Wie heißt das Gemälde?"
    assert guess_encoding(text.encode(encoding)) == encoding
    assert guess_encoding(b"plain") == "utf-8"
    assert guess_encoding(b"caf\xe9 \x81") == "latin-1"  # 0x81 is nothing in cp1252


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n \n", "is empty"),
        ("a.csv", b"PK\x03\x04", "the file is a zip archive"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b'[{"a": NaN}]', "is no JSON (NaN"),
        ("a.json", b"[" * 100_000, "nest too deeply"),
        ("a.json", b"{}", "holds an object where a list of objects belongs"),
        ("a.json", b"[]", "is an empty list"),
        ("a.json", b'[{"a": 1}, 2]', "item 2 of its list is a number where an object belongs"),
        ("a.json", b"\xff\xfe", "is no JSON"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    told = open_table(tmp_path / name, None, None)
    assert isinstance(told, str)
    assert why in told
    assert "cannot be read" in str(open_table(tmp_path / "none.csv", None, None))


def test_items_of_json_are_rows_or_told(tmp_path: Path) -> None:
    right = {"image": "a.jpg", "question": " q ", "answer": 1872, "need_external_knowledge": True}
    items = [right, {"image": "a.jpg", "question": "q"}, {**right, "answer": ["a"]}, {**right, "answer": True}]
    (tmp_path / "a.json").write_text(json.dumps(items))
    table = open_table(tmp_path / "a.json", None, None)
    assert isinstance(table, Table)
    rows, problems = table.with_columns({**COLUMNS, "question_type": "need_external_knowledge"}).rows()
    assert [dict(row.cells) for row in rows] == [
        {"image": "a.jpg", "question": "q", "answer": "1872", "question_type": "knowledge"}
    ]
    told = [str(problem).removeprefix(f"{tmp_path}/") for problem in problems]
    assert told[0] == "a.json:2: 'answer' of the item is missing; give it a text"
    assert told[1] == "a.json:3: 'answer' of the item is \"['a']\"; give it a text"
    assert told[2] == "a.json:4: 'answer' of the item is 'True'; give it a text"


def test_an_encoding_that_no_config_names_is_refused() -> None:
    check_encoding(None, ["utf-8"])
    check_encoding("utf-8", ["utf-8"])
    with pytest.raises(UserError, match="--encoding rot13: is none that a config can name; give one of utf-8"):
        check_encoding("rot13", ["utf-8"])
