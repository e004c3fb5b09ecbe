"""Columns hold the strings that they were made of, however they are read."""

from pathlib import Path

import pytest

from artkv.datasets import columns
from artkv.datasets.columns import PathColumn, StringColumn

TEXTS = ["", "één", "a\nb", "\udcff.png", "画😀", "", "last"]


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 4096])
def test_all_strings_one_after_another_are_those_of_each_row(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(columns, "_ROWS_AT_ONCE", at_once)
    column = StringColumn(TEXTS)
    assert list(column) == TEXTS == [column[row] for row in range(len(column))]
    assert list(StringColumn.of_arrays(column.arrays("x"), "x")) == TEXTS
    assert list(PathColumn(map(Path, TEXTS))) == list(map(Path, TEXTS))
    assert list(StringColumn([])) == []


def test_the_same_bytes_cut_elsewhere_are_another_column() -> None:
    assert StringColumn(["ab", "c"]).sha256() != StringColumn(["a", "bc"]).sha256()
    assert StringColumn(TEXTS).num_bytes == 8 * (len(TEXTS) + 1) + sum(
        len(text.encode("utf-8", "surrogateescape")) for text in TEXTS
    )
