"""What lies in a folder."""

import os
from pathlib import Path

import pytest

from artkv.datasets.image_index import ImageIndex
from artkv.errors import UserError
from artkv.starting.survey import ORIGIN, ORIGIN_BEGINS, picture_roots, share_found, survey


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_pictures_and_tables_are_found_below_and_own_or_hidden_folders_are_not(tmp_path: Path) -> None:
    make(
        tmp_path,
        "q.csv",
        "d/r.JSON",
        "d/notes.txt",
        "i/a.JPG",
        "i/j/b.png",
        ".git/c.csv",
        ".hidden.csv",
        "own/train.csv",
    )
    (tmp_path / "own" / ORIGIN).write_text(f"{ORIGIN_BEGINS}.")
    os.symlink(tmp_path, tmp_path / "i" / "loop")
    found = survey(tmp_path, "FOLDER")
    assert found.tables == (tmp_path / "q.csv", tmp_path / "d" / "r.JSON")
    assert found.pictures == {tmp_path / "i": 1, tmp_path / "i" / "j": 1}
    assert found.picture_folder == tmp_path / "i"
    assert picture_roots(found, tmp_path) == [tmp_path / "i", tmp_path]
    assert picture_roots(found, tmp_path / "i") == [tmp_path / "i"]


def test_names_of_pictures_are_told_from_other_texts(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "d/b.jpg", "e/b.jpg", "notes.csv")
    index = ImageIndex(tmp_path)
    assert share_found(index, ["a.jpg", "a.jpg", "b.jpg", "none.jpg", "notes.csv", ""]) == 0.5
    assert share_found(index, []) == share_found(index, [""]) == 0


def test_a_folder_that_is_none_or_too_full_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"FOLDER .*none: cannot be listed \(No such file"):
        survey(tmp_path / "none", "FOLDER")
    make(tmp_path, *(f"{number}.csv" for number in range(201)))
    with pytest.raises(UserError, match="--images .*: holds 201 CSV and JSON files, of 200 at most"):
        survey(tmp_path, "--images")
