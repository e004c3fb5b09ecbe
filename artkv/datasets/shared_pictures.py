"""Pictures of one table that are in another too, under whatever name: what is validated on must not be trained on."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from artkv.datasets.picture_files import open_picture_file, picture_bytes
from artkv.datasets.table import QuestionTable
from artkv.errors import UserError
from artkv.files import file_sha256


def shared_pictures(table: QuestionTable, other: QuestionTable) -> list[tuple[Path, Path]]:
    """Each picture of `table` that `other` has too, with its path there: the same file, or a copy of it.

    The content is compared of files with equal sizes alone. What cannot be read is passed over.
    """
    by_size: dict[int | None, list[Path]] = defaultdict(list)
    for path in other.painting_paths:
        by_size[_size(path)].append(path)
    by_size.pop(None, None)
    by_content: dict[int, dict[str, Path]] = {}
    shared = []
    for path in table.painting_paths:
        size = _size(path)
        if size not in by_size:
            continue
        assert size is not None
        if size not in by_content:
            by_content[size] = {_sha256(same): same for same in reversed(by_size[size])}
        if found := by_content[size].get(_sha256(path)):
            shared.append((path, found))
    return shared


def same_pictures(paths: Sequence[Path]) -> list[int]:
    """For each path the place of the first one with the same content; what cannot be read is like nothing else."""
    by_size: dict[int | None, list[int]] = defaultdict(list)
    for place, path in enumerate(paths):
        by_size[_size(path)].append(place)
    first = list(range(len(paths)))
    for size, places in by_size.items():
        if size is None or len(places) == 1:
            continue
        first_of: dict[str, int] = {}
        for place in places:
            first[place] = first_of.setdefault(_sha256(paths[place]), place)
    return first


def _size(path: Path) -> int | None:
    try:
        return picture_bytes(path)
    except (OSError, UserError):
        return None


def _sha256(path: Path) -> str:
    """Of the file's content; its path where it cannot be read, which is no other's."""
    try:
        with open_picture_file(path) as opened:
            return file_sha256(opened.file)
    except (OSError, UserError):
        return str(path)
