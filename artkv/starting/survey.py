"""What lies in a folder: pictures, and files that may be tables."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artkv.datasets.decoding import PICTURE_SUFFIXES
from artkv.datasets.image_index import ImageIndex
from artkv.errors import UserError
from artkv.reading import printable
from artkv.starting.arguments import check_folder

TABLES = frozenset((".csv", ".tsv", ".json"))
# A file of this name, in a folder that init made, begins so.
ORIGIN, ORIGIN_BEGINS = "origin.txt", "Written by artkv init"
_MOST_TABLES = 200
_MOST_ENDINGS = 6
_MOST_FILES = 20_000_000


@dataclass(frozen=True)
class Survey:
    """Files below a folder.

    pictures: how many lie in each folder that has any. tables: in the order of their names. others: of the other files,
    how many have each ending.
    """

    pictures: dict[Path, int]
    tables: tuple[Path, ...]
    others: Mapping[str, int]

    @property
    def num_pictures(self) -> int:
        """All of them."""
        return sum(self.pictures.values())

    def told_of_others(self) -> str:
        """Which endings the other files have, in parentheses for a message; empty where there are none."""
        common = sorted(self.others, key=lambda suffix: (-self.others[suffix], suffix))[:_MOST_ENDINGS]
        names = ", ".join(printable(suffix) for suffix in common)
        return f" (its other files end in {names}, which are not read)" if names else ""

    @property
    def picture_folder(self) -> Path:
        """The deepest folder that holds all pictures."""
        return Path(os.path.commonpath(self.pictures))


def survey(folder: Path, option: str) -> Survey:
    """Lists a folder, sub-folders included, but for hidden ones and those that an earlier init has written.

    option: how messages name what gave the folder. Raises `UserError` if it is none that can be listed.
    """
    pictures: dict[Path, int] = {}
    tables: list[Path] = []
    others: Counter[str] = Counter()
    num_files = 0
    visited: set[str] = set()
    check_folder(folder, option)
    for place, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited or _is_own(Path(place), files):
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        num_files += len(files)
        if num_files > _MOST_FILES:
            raise UserError(f"{option} {printable(folder)}: holds more than {_MOST_FILES:,} files; give a smaller one")
        suffixes = [(name, os.path.splitext(name)[1].lower()) for name in sorted(files) if not name.startswith(".")]
        if found := sum(suffix in PICTURE_SUFFIXES for _, suffix in suffixes):
            pictures[Path(place)] = found
        tables += [Path(place, name) for name, suffix in suffixes if suffix in TABLES]
        others.update(suffix for _, suffix in suffixes if suffix and suffix not in TABLES | PICTURE_SUFFIXES)
    if len(tables) > _MOST_TABLES:
        raise UserError(
            f"{option} {printable(folder)}: holds {len(tables):,} CSV and JSON files, of {_MOST_TABLES} at most; give "
            "the folder of the questions, and --images for the pictures"
        )
    return Survey(pictures, tuple(tables), others)


def picture_roots(found: Survey, top: Path) -> list[Path]:
    """Folders that names of pictures may be relative to: the deepest that holds all of them, and those up to `top`."""
    deepest = found.picture_folder
    above = [folder for folder in deepest.parents if folder == top or top in folder.parents]
    return [deepest, *above] if deepest != top else [top]


def share_found(images: ImageIndex, names: list[str]) -> float:
    """How many of some names are names of pictures, as a share; of several that are meant none is taken."""
    distinct = [name for name in dict.fromkeys(names) if name]
    if not distinct:
        return 0.0
    return sum(_is_picture(images, name) for name in distinct) / len(distinct)


def _is_picture(images: ImageIndex, name: str) -> bool:
    # One that lies in several folders is a picture's name all the same, and told when it is looked up.
    if os.path.splitext(name)[1].lower() not in PICTURE_SUFFIXES:
        return False
    try:
        images.find(name)
    except UserError as error:
        return "is ambiguous" in str(error)
    return True


def _is_own(folder: Path, files: list[str]) -> bool:
    if ORIGIN not in files:
        return False
    try:
        return (folder / ORIGIN).read_text(encoding="utf-8", errors="replace").startswith(ORIGIN_BEGINS)
    except OSError:
        return False
