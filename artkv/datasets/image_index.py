"""Finds the pictures that a CSV file names, wherever they lie under `image_root`."""

import os
import unicodedata
from pathlib import Path

from artkv.datasets.decoding import MAX_PIXELS
from artkv.datasets.problems import quoted
from artkv.errors import UserError
from artkv.reading import printable, remedy_for, whole_system

_MAX_PLACES_SHOWN = 5
_MOST_FILES = 20_000_000


class ImageIndex:
    """All files under a folder, listed once, found by relative path or by bare name.

    Names are case-sensitive. Linked folders are followed, each real folder once, but for those that hold the root
    itself: a link to a parent, or to `/`, leads to what is no part of the pictures.

    root: the folder. max_pixels: most of a picture that is decoded. unreadable: folders below it that could not be
    listed, each with the reason.

    Raises `UserError` if `root` is not a folder that can be listed, or holds more than twenty million files.
    """

    def __init__(self, root: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.root = Path(root)
        self.max_pixels = max_pixels
        self.unreadable: list[str] = []
        self._relative_paths: set[str] = set()
        self._places_of_name: dict[str, list[str]] = {}
        self._by_folded_name: dict[str, str] | None = None
        self._check_root()
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
        root = printable(self.root)
        if places:
            shown = ", ".join(quoted(place) for place in places[:_MAX_PLACES_SHOWN])
            more = f" and {len(places) - _MAX_PLACES_SHOWN} more" if len(places) > _MAX_PLACES_SHOWN else ""
            raise UserError(f"picture {quoted(name)} is ambiguous: {shown}{more} under {root}; give one of these paths")
        unlisted = f" (not listed: {', '.join(self.unreadable[:_MAX_PLACES_SHOWN])})" if self.unreadable else ""
        remedy = self._remedy(relative)
        raise UserError(f"picture {quoted(name)} is missing: no such file under {root}{unlisted}; {remedy}")

    def _remedy(self, relative: str) -> str:
        if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
            return "give its path below dataset.image_root, which must hold it"
        if near := self._nearly(relative):
            return f"did you mean {quoted(near)}? names must match in case, accents and folder"
        return "add the picture, correct the name, or correct dataset.image_root"

    def _check_root(self) -> None:
        place = f"dataset.image_root {printable(self.root)}"
        if (what := whole_system(self.root)) is not None:  # minutes of listing, and none of it pictures
            raise UserError(f"{place}: is {what}; give the folder that holds the pictures")
        try:
            os.scandir(self.root).close()
        except FileNotFoundError:
            raise UserError(f"{place}: no such folder; give the folder that holds the pictures") from None
        except NotADirectoryError:
            raise UserError(f"{place}: is a file; give the folder that holds the pictures") from None
        except (OSError, ValueError) as error:  # the latter for a NUL character
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{place}: cannot be listed ({reason}); {remedy_for(error, 'give a folder')}") from None

    def _list_files(self) -> None:
        visited: set[str] = set()
        holders = {str(folder) for folder in Path(os.path.realpath(self.root)).parents}
        for folder, subfolders, files in os.walk(self.root, followlinks=True, onerror=self._note):
            real = os.path.realpath(folder)
            if real in visited or real in holders:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders.sort()
            prefix = os.path.relpath(folder, self.root)
            for file in files:
                relative = file if prefix == "." else os.path.join(prefix, file)
                self._relative_paths.add(relative)
                self._places_of_name.setdefault(file, []).append(relative)
            if len(self) > _MOST_FILES:
                raise UserError(
                    f"dataset.image_root {printable(self.root)}: holds more than {_MOST_FILES:,} files; "
                    "give the folder of the pictures alone"
                )

    def _note(self, error: OSError) -> None:
        self.unreadable.append(f"{printable(error.filename)} ({error.strerror})")

    def _nearly(self, relative: str) -> str | None:
        """A file whose name differs only in case, in Unicode composition or in its folder."""
        if self._by_folded_name is None:
            self._by_folded_name = {_folded(name): places[0] for name, places in self._places_of_name.items()}
        return self._by_folded_name.get(_folded(os.path.basename(relative)))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
