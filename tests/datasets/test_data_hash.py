"""The hash of a table is that of its rows, each as one JSON list; checkpoints of all versions have it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from artkv.datasets import data_hash
from artkv.datasets.columns import PathColumn, StringColumn
from artkv.datasets.data_hash import data_hash_of
from artkv.datasets.table import QuestionTable

ROWS = [
    ("a.png", "Who?", "Jan"),
    ("sub/é.png", 'a "quoted", "text"', "two\nlines\r\t\\n"),
    ("a.png", '", "', '"'),
    ("\udcff.png", "", "\u2028 \x00 画 😀"),
    ("sub/é.png", "[", "]"),
]


def table_of(root: Path) -> QuestionTable:
    names = list(dict.fromkeys(name for name, _, _ in ROWS))
    questions, answers = StringColumn(q for _, q, _ in ROWS), StringColumn(a for _, _, a in ROWS)
    nothing = StringColumn("" for _ in ROWS)
    painting_of_row = np.array([names.index(name) for name, _, _ in ROWS])
    paths = PathColumn(root / name for name in names)
    return QuestionTable(Path("t.csv"), questions, answers, nothing, nothing, np.arange(5), painting_of_row, paths)


@pytest.mark.parametrize("at_once", [1, 2, 5, 4096])
@pytest.mark.parametrize("root", ["pictures", "shards/{00..09}.tar"])
def test_it_is_that_of_each_row_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, root: str
) -> None:
    monkeypatch.setattr(data_hash, "_AT_ONCE", at_once)
    wanted = hashlib.sha256("".join(json.dumps(list(row)) for row in ROWS).encode())
    folder = tmp_path / root.split("/")[0]
    assert data_hash_of(table_of(folder), tmp_path / root) == wanted.hexdigest()
