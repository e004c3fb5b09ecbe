"""Finds the pictures that a CSV file names, wherever they lie under `image_root`."""

import os
import unicodedata
from pathlib import Path

from artkv.errors import UserError

_MAX_PLACES_SHOWN = 5


class ImageIndex:
    """All files under a folder, listed once, found by relative path or by bare name.

    Names are case-sensitive. Linked folders are followed, each real folder once, so that a link to a
    parent does no harm. Raises `UserError` if `root` is not a folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"dataset.image_root {self.root}: no such folder; give the folder that holds the pictures")
        self._relative_paths: set[str] = set()
        self._places_of_name: dict[str, list[str]] = {}
        self._by_folded_name: dict[str, str] | None = None
        self._list_files()

    def __len__(self) -> int:
        return len(self._relative_paths)

    def find(self, name: str) -> Path:
        """The path of the picture `name`: relative to the root, or a bare file name in any sub-folder.

        An exact relative path wins. Raises `UserError` for a name that is nowhere, and for a bare name
        that lies in several sub-folders.
        """
        relative = os.path.normpath(name)
        if relative in self._relative_paths:
            return self.root / relative
        places = self._places_of_name.get(relative, [])
        if len(places) == 1:
            return self.root / places[0]
        if places:
            shown = ", ".join(repr(place) for place in places[:_MAX_PLACES_SHOWN])
            more = f" and {len(places) - _MAX_PLACES_SHOWN} more" if len(places) > _MAX_PLACES_SHOWN else ""
            raise UserError(f"picture {name!r} is ambiguous: {shown}{more} under {self.root}; give one of these paths")
        near = self._nearly(relative)
        remedy = (
            f"did you mean {near!r}? names must match in case, accents and folder"
            if near
            else "add the picture, correct the name, or correct dataset.image_root"
        )
        raise UserError(f"picture {name!r} is missing: no such file under {self.root}; {remedy}")

    def _list_files(self) -> None:
        visited: set[str] = set()
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            prefix = os.path.relpath(folder, self.root)
            for file in files:
                relative = file if prefix == "." else os.path.join(prefix, file)
                self._relative_paths.add(relative)
                self._places_of_name.setdefault(file, []).append(relative)

    def _nearly(self, relative: str) -> str | None:
        """A file whose name differs only in case, in Unicode composition or in its folder."""
        if self._by_folded_name is None:
            self._by_folded_name = {_folded(name): places[0] for name, places in self._places_of_name.items()}
        return self._by_folded_name.get(_folded(os.path.basename(relative)))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
