"""Finds the pictures that a CSV file names, wherever they lie under `image_root`."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from artkv.datasets.arrow_members import ARROW
from artkv.datasets.decoding import MAX_PIXELS, PICTURE_SUFFIXES
from artkv.datasets.member_index import SHARD_SUFFIXES, Stamp
from artkv.datasets.picture_files import index_of, open_picture_file, picture_bytes
from artkv.datasets.problems import quoted
from artkv.datasets.shards import folder_of_names, shards_in, shards_of
from artkv.errors import UserError
from artkv.reading import is_address, printable, remedy_for, whole_system

_MAX_PLACES_SHOWN = 5
_MOST_FILES = 20_000_000
# What files end with that many pictures are kept in.
_ARCHIVES = (
    *SHARD_SUFFIXES, ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar",
    ".parquet", ".h5", ".hdf5", ".lmdb", ".mdb", ".tfrecord",
)  # fmt: skip


class ImageIndex:
    """All files under a folder, or in shards, listed once, found by relative path or by bare name.

    Shards are tar and Arrow files. A folder that holds some, and no loose picture anywhere, is a folder of shards:
    their members are the pictures; see `shards_in`. So are those of a shard, or of all that a pattern such as
    `{000..099}.tar` names. A member's path goes through its shard; its name in the shard is enough where no other has
    it, and so is that below the shard's folder.

    Names are case-sensitive. Linked folders are followed, each real folder once, but for those that hold the root
    itself: a link to a parent, or to `/`, leads to what is no part of the pictures.

    root: the folder that names are relative to. max_pixels: most of a picture that is decoded. unreadable: folders
    below it that could not be listed, each with the reason. called: how messages name what gave the root.

    Raises `UserError` if `root` is not a folder that can be listed, or holds more than twenty million files.
    """

    def __init__(self, root: Path, max_pixels: int = MAX_PIXELS, called: str = "dataset.image_root") -> None:
        self.root = folder_of_names(Path(root))
        self.max_pixels = max_pixels
        self.called = called
        self.unreadable: list[str] = []
        self._relative_paths: set[str] = set()
        self._places_of_name: dict[str, list[str]] = {}
        self._stamps: list[Stamp] = []  # of the shards
        self._by_folded_name: dict[str, str] | None = None
        self._loose_picture: str | None = None
        self._archives: list[str] | None = None  # of any kind, that are no shards of these; None: not looked for yet
        shards = shards_of(Path(root))
        if shards is None:
            self._check_root()
            shards = self._list_files()
        for shard in shards:
            self._list_members(shard)

    def fingerprint(self) -> str:
        """SHA-256 of all that a name's path depends on."""
        names = sorted(f"{name}\0{chr(0).join(places)}" for name, places in self._places_of_name.items())
        listed = "\0\0".join([str(self.root), str(self._stamps), *sorted(self._relative_paths), "", *names])
        return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()

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
        places = list(dict.fromkeys(self._places_of_name.get(relative, [])))
        if len(places) == 1 or self._repeat_one(places):
            return self.root / places[0]
        root = printable(self.root)
        if places:
            shown = ", ".join(quoted(place) for place in places[:_MAX_PLACES_SHOWN])
            more = f" and {len(places) - _MAX_PLACES_SHOWN} more" if len(places) > _MAX_PLACES_SHOWN else ""
            raise UserError(f"picture {quoted(name)} is ambiguous: {shown}{more} under {root}; give one of these paths")
        unlisted = f" (not listed: {', '.join(self.unreadable[:_MAX_PLACES_SHOWN])})" if self.unreadable else ""
        remedy = self._remedy(name, relative)
        raise UserError(
            f"picture {quoted(name)} is missing: no such file under {root}{unlisted}{self._aside()}; {remedy}"
        )

    def _aside(self) -> str:
        """What lies below the root and may hold pictures, but is not looked into, and what to do; else nothing."""
        if self._archives is None:
            self._archives = _archives(self._relative_paths)
        if not self._archives:
            return ""
        first = printable(self._archives[0])
        count = f"{first} lies" if len(self._archives) == 1 else f"{len(self._archives):,} such as {first} lie"
        if not first.endswith(SHARD_SUFFIXES):
            way = "unpack what holds pictures"
        elif self._loose_picture is None:
            way = "move what holds pictures into the folder itself"
        else:
            way = f"for there are loose pictures, such as {printable(self._loose_picture)}; move those elsewhere"
        return f" ({count} there and not looked into: {way})"

    def _repeat_one(self, places: list[str]) -> bool:
        """Whether these are rows about the same picture, which a dataset's files or splits may all hold."""
        if not places or not all(ARROW + os.sep in place for place in places):
            return False
        paths = [self.root / place for place in places]
        if len({picture_bytes(path) for path in paths}) > 1:
            return False
        contents = set()
        for path in paths:
            with open_picture_file(path) as opened:
                contents.add(opened.file.read())
        return len(contents) == 1

    def _remedy(self, name: str, relative: str) -> str:
        if is_address(name):
            return "it is an address, and none is fetched; download the pictures, and give their names"
        if "\\" in name and (near := self._nearly(name.replace("\\", "/"))):
            return f"did you mean {quoted(near)}? folders stand before a '/', and none before a '\\'"
        if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
            return f"give its path below {self.called}, which must hold it"
        if near := self._nearly(relative):
            return f"did you mean {quoted(near)}? names must match in case, accents, folder and ending"
        return f"add the picture, correct the name, or correct {self.called}"

    def _check_root(self) -> None:
        place = f"{self.called} {printable(self.root)}"
        if (what := whole_system(self.root)) is not None:  # minutes of listing, and none of it pictures
            raise UserError(f"{place}: is {what}; give the folder that holds the pictures")
        try:
            os.scandir(self.root).close()
        except FileNotFoundError:
            if self.root.suffix in SHARD_SUFFIXES:
                pattern = f"a pattern such as {{000..099}}{self.root.suffix}"
                raise UserError(f"{place}: no such file; give the folder of them, one there, or {pattern}") from None
            raise UserError(f"{place}: no such folder; give the folder that holds the pictures") from None
        except NotADirectoryError:
            what = "a file"
            if self.root.name.lower().endswith(_ARCHIVES):
                what = "a file that is not looked into, as a plain .tar is; unpack it"
            raise UserError(f"{place}: is {what}; give the folder that holds the pictures") from None
        except (OSError, ValueError) as error:  # the latter for a NUL character
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{place}: cannot be listed ({reason}); {remedy_for(error, 'give a folder')}") from None

    def _list_files(self) -> list[Path]:
        """Lists the folder; returns its shards instead where they hold the pictures."""
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
                if self._loose_picture is None and os.path.splitext(file)[1].lower() in PICTURE_SUFFIXES:
                    self._loose_picture = relative
            if len(self) > _MOST_FILES:
                raise UserError(
                    f"{self.called} {printable(self.root)}: holds more than {_MOST_FILES:,} files; "
                    "give the folder of the pictures alone"
                )

        shards = [] if self._loose_picture is not None else shards_in(self.root, self._relative_paths)
        if shards:
            found = {os.path.relpath(shard, self.root) for shard in shards}
            self._archives = _archives(self._relative_paths - found)
            self._relative_paths.clear()
            self._places_of_name.clear()
        return shards

    def _list_members(self, shard: Path) -> None:
        prefix = os.path.relpath(shard, self.root)
        index = index_of(shard)
        self._stamps.append(index.stamp)
        names = list(index.row_of_name)
        for name, row in [*index.row_of_name.items(), *index.other_names]:
            relative = names[row] if prefix == "." else os.path.join(prefix, names[row])
            self._relative_paths.add(relative)
            # By its name in the shard, by that below the shard's folder, and by the bare one.
            for known_as in {name, os.path.join(os.path.dirname(prefix), name), os.path.basename(name)}:
                places = self._places_of_name.setdefault(known_as, [])
                if relative not in places[-1:]:
                    places.append(relative)
        if len(self) > _MOST_FILES:
            raise UserError(
                f"{printable(shard)}: with it there are more than {_MOST_FILES:,} pictures; give fewer shards"
            )

    def _note(self, error: OSError) -> None:
        self.unreadable.append(f"{printable(error.filename)} ({error.strerror})")

    def _nearly(self, relative: str) -> str | None:
        """A file whose name differs only in case, in Unicode composition, in its folder or in a picture's ending."""
        if self._by_folded_name is None:
            self._by_folded_name = {_folded(name): places[0] for name, places in self._places_of_name.items()}
            stems = {_stem(name): place for name, place in self._by_folded_name.items() if _stem(name) != name}
            self._by_folded_name = stems | self._by_folded_name
        name = _folded(os.path.basename(relative))
        return self._by_folded_name.get(name) or self._by_folded_name.get(_stem(name))


def _stem(name: str) -> str:
    """A folded name without what pictures' names end with."""
    stem, ending = os.path.splitext(name)
    return stem if ending in PICTURE_SUFFIXES else name


def _archives(files: Iterable[str]) -> list[str]:
    """Those of the files that may hold pictures and are none; what shards end with comes first."""
    found = sorted(file for file in files if file.lower().endswith(_ARCHIVES))
    return sorted(found, key=lambda file: not file.endswith(SHARD_SUFFIXES))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
