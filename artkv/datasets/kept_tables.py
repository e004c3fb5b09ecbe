"""Large tables that were found to be right, kept in the user's cache, so that a million questions are checked once."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL

from artkv.datasets.columns import PathColumn, StringColumn
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.kept_arrays import keep, kept, kept_at
from artkv.datasets.kept_tokens import FEWEST_ROWS
from artkv.datasets.member_index import is_settled
from artkv.datasets.picture_files import picture_stamps
from artkv.datasets.table import QuestionTable
from artkv.datasets.table_form import TableForm
from artkv.files import file_sha256
from artkv.reading import open_regular

# To be raised with any change of what is checked of a table or a picture, or of the arrays.
_FORMAT = 1
_TEXTS = ("questions", "answers", "question_ids", "question_types")
_NUMBERS = ("line_numbers", "painting_of_row")
_PATHS = "painting_paths"


def kept_table(csv_path: Path, images: ImageIndex, form: TableForm) -> QuestionTable | None:
    """The table of a CSV file, mapped from the cache; None where this very table was not found right before.

    It is used if the bytes of the file, how it is read, the names of all pictures, and size and times of those that
    it names are what they were when every row was checked and every picture decoded.
    """
    folder = _folder(csv_path, images)
    if folder is None or not folder.exists():
        return None
    try:
        with open_regular(csv_path) as file:
            sha256 = file_sha256(file)
    except OSError:
        return None  # whoever reads it tells why
    key = _key(sha256, images, form)
    arrays = kept(folder, key)
    if arrays is None:
        return None
    questions, answers, question_ids, question_types, paths = (
        StringColumn.of_arrays(arrays, name) for name in (*_TEXTS, _PATHS)
    )
    stamps = picture_stamps(paths)
    if stamps is None or kept(folder, _key_of_check(key, stamps)) is None:
        return None
    lines, painting_of_row = (arrays[name] for name in _NUMBERS)
    columns = (questions, answers, question_ids, question_types, lines, painting_of_row)
    return QuestionTable(csv_path, *columns, painting_paths=PathColumn(paths))


def settled_stamps(table: QuestionTable) -> np.ndarray | None:
    """What tells the pictures of a table from changed ones, (paintings, 3) int64; to be asked for before a check.

    None for a table that is not kept: a small one, or one of pictures that were changed a moment ago.
    """
    if len(table) < FEWEST_ROWS:
        return None
    stamps = picture_stamps(table.painting_paths.strings)
    # A file that is changed later gets other times, but for within a tick of its file system's clock.
    return stamps if stamps is not None and is_settled(int(stamps[:, 1:].max())) else None


def keep_table(table: QuestionTable, sha256: str, images: ImageIndex, form: TableForm, stamps: np.ndarray) -> None:
    """Keeps a table that is right. sha256: of the bytes it was read from. stamps: see `settled_stamps`."""
    arrays = {name: getattr(table, name) for name in _NUMBERS}
    for name in _TEXTS:
        arrays |= getattr(table, name).arrays(name)
    arrays |= table.painting_paths.strings.arrays(_PATHS)
    folder, key = _folder(table.path, images), _key(sha256, images, form)
    keep(folder, key, arrays)
    keep(folder, _key_of_check(key, stamps), {})


def _folder(csv_path: Path, images: ImageIndex) -> Path | None:
    return kept_at("tables", _FORMAT, os.path.abspath(csv_path), images.root)


def _key(sha256: str, images: ImageIndex, form: TableForm) -> str:
    """Of all that a table and its checks depend on, but for the stamps of its pictures."""
    return json.dumps([sha256, asdict(form), images.fingerprint(), images.max_pixels, PIL.__version__])


def _key_of_check(key: str, stamps: np.ndarray) -> str:
    """Of the file, without arrays, that says that the table's pictures were found right when they had these stamps."""
    return f"{key} {hashlib.sha256(stamps.tobytes()).hexdigest()}"
