"""Tables with other names, delimiters and encodings are read as the plain one is."""

from pathlib import Path

import pytest

from artkv.config import ColumnsConfig, DatasetConfig
from artkv.datasets.records import read_records
from artkv.datasets.table_form import DELIMITERS, TableForm
from artkv.errors import UserError

ROWS = [["a.jpg", "Qué estilo, y de quién?", "óleo"], ["b;c.jpg", "Wie heißt | das\tBild?", "Mädchen"]]


def cells(path: Path, form: TableForm) -> list[list[str]]:
    found = read_records(path, form=form)
    assert found.problems == []
    return [list(record.cells.values()) for record in found.records]


@pytest.mark.parametrize("delimiter", ["auto", *DELIMITERS])
@pytest.mark.parametrize("written", DELIMITERS)
def test_every_delimiter_is_found_or_taken_as_set(tmp_path: Path, written: str, delimiter: str) -> None:
    character = DELIMITERS[written]
    lines = [character.join(f'"{cell}"' for cell in row) for row in ROWS]
    path = tmp_path / "data.csv"
    path.write_text("\n".join([character.join(["image", "question", "answer"]), *lines]), encoding="utf-8")
    form = TableForm(delimiter=delimiter)
    if delimiter in ("auto", written):
        assert cells(path, form) == ROWS
    else:
        told = f"dataset.delimiter = {delimiter}, and the header's names stand between {written}s; set it to {written}"
        assert told in str(read_records(path, form=form).problems[0])


@pytest.mark.parametrize(
    ("encoding", "data_encoding"),
    [
        ("utf-8", "utf-8"), ("utf-8", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-16", "utf-16-le"),
        ("utf-16", "utf-16-be"), ("latin-1", "latin-1"), ("cp1252", "cp1252"), ("mac-roman", "mac-roman"),
    ],
)  # fmt: skip
def test_an_encoding_is_read(tmp_path: Path, encoding: str, data_encoding: str) -> None:
    path = tmp_path / "data.csv"
    lines = [",".join(f'"{cell}"' for cell in row) for row in [["image", "question", "answer"], *ROWS]]
    path.write_bytes("\r\n".join(lines).encode(data_encoding))
    assert cells(path, TableForm(encoding=encoding)) == ROWS


def test_columns_have_the_names_that_the_config_gives(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("type;Frage;Antwort;Bild;question_id\nstyle;Was?;Öl;a.jpg;7\n", encoding="utf-8")
    columns = ColumnsConfig(image="Bild", question="Frage", answer="Antwort", question_id=None, question_type="type")
    (record,) = read_records(path, form=TableForm.of(DatasetConfig(columns=columns))).records
    assert record.cells == {"image": "a.jpg", "question": "Was?", "answer": "Öl", "question_type": "style"}


def test_settings_name_their_remedy_where_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"image,question,answer\na,caf\xe9,b\n")
    assert "dataset" not in str(read_records(path).problems[0])
    assert "set dataset.encoding: latin-1" in str(read_records(path, form=TableForm.of(DatasetConfig())).problems[0])
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path / "none.csv")
