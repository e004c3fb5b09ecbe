"""Opens picture files, be they files of their own or members of tar files.

The path of a member goes through its tar as if that were a folder: `shards/00012.tar/a/b.jpg`.
"""

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from artkv.datasets.tar_index import Stamp, TarIndex, read_tar_index, stamp_of
from artkv.errors import UserError
from artkv.reading import open_regular, printable

TAR = ".tar"
_PATTERN = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_MOST_SHARDS = 1_000_000
_indices: dict[str, TarIndex] = {}
_reading_index = threading.Lock()


class PictureFile(NamedTuple):
    """A picture file that is open for reading, the number of its bytes, and the stamp of what holds them."""

    file: BinaryIO
    num_bytes: int
    stamp: Stamp


@contextmanager
def open_picture_file(path: Path) -> Iterator[PictureFile]:
    """A regular file, or a member of a tar; `OSError`, whose `strerror` says why, for what is neither.

    Raises `UserError` for a tar that is damaged.
    """
    tar = tar_of(path)
    with open_regular(path if tar is None else tar) as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        if tar is None:
            yield PictureFile(file, stamp[0], stamp)
            return
        index = index_of(tar)
        if index.stamp != stamp:
            raise OSError(None, f"{printable(tar)} changed while it was being read", str(path))
        start, size = _place(index, path, tar)
        with io.BufferedReader(_Member(file.fileno(), start, size)) as member:
            yield PictureFile(member, size, stamp)


def picture_stamp(path: Path) -> Stamp:
    """What tells that a picture has not changed, of its file or of its tar; `OSError` where there is none."""
    return stamp_of(os.stat(tar_of(path) or path))


def picture_bytes(path: Path) -> int:
    """The size of a picture's file; `OSError` where there is none."""
    tar = tar_of(path)
    return os.stat(path).st_size if tar is None else _place(index_of(tar), path, tar)[1]


def tar_of(path: Path) -> Path | None:
    """The tar that a path goes through; None if it goes through none, as through a folder that is named like one."""
    text = str(path)
    end = text.find(TAR + os.sep)
    while end >= 0:
        tar = text[: end + len(TAR)]
        if os.path.isfile(tar):
            return Path(tar)
        end = text.find(TAR + os.sep, end + 1)
    return None


def index_of(tar: Path) -> TarIndex:
    """A tar's index, read once by a process as long as the tar does not change; see `read_tar_index`."""
    with _reading_index:
        known = _indices.get(str(tar))
        try:
            is_same = known is not None and known.stamp == stamp_of(os.stat(tar))
        except OSError:
            is_same = False
        if known is None or not is_same:
            known = _indices[str(tar)] = read_tar_index(tar)
        return known


def folder_of_names(image_root: Path) -> Path:
    """What the names of pictures are relative to: `image_root`, or the folder above a pattern such as {00..99}.tar."""
    if not _is_pattern(image_root):
        return image_root
    return next(folder for folder in image_root.parents if _PATTERN.search(str(folder)) is None)


def shards_of(image_root: Path) -> list[Path] | None:
    """The tars that `image_root` names, itself or as a pattern; None where it names none.

    Raises `UserError` for a pattern that names nothing, or tars that are not there.
    """
    if image_root.suffix == TAR and image_root.is_file():
        return [image_root]
    if not _is_pattern(image_root):
        return None
    place = f"dataset.image_root {printable(image_root)}"
    text = str(image_root)
    found = _PATTERN.findall(text)
    if len(found) != 1:
        raise UserError(f"{place}: has {len(found)} patterns in braces, of 1 at most; give the folder of the tars")
    first, last = found[0]
    if not text.endswith(TAR):
        raise UserError(f"{place}: a pattern names .tar files; end it with {TAR}")
    if not 0 <= int(last) - int(first) < _MOST_SHARDS:
        raise UserError(f"{place}: {{{first}..{last}}} names no tars, or over {_MOST_SHARDS:,}; give {{FIRST..LAST}}")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    shards = [Path(_PATTERN.sub(f"{number:0{width}}", text)) for number in range(int(first), int(last) + 1)]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise UserError(
            f"{place}: {len(missing):,} of its {len(shards):,} tars are missing, the first {printable(missing[0])}; "
            "fetch them, or correct the pattern"
        )
    return shards


def _is_pattern(image_root: Path) -> bool:
    return _PATTERN.search(str(image_root)) is not None and not os.path.lexists(image_root)


def _place(index: TarIndex, path: Path, tar: Path) -> tuple[int, int]:
    row = index.row_of_name.get(os.path.relpath(path, tar))
    if row is None:
        raise FileNotFoundError(2, f"no such member of {printable(tar)}", str(path))
    return int(index.offsets[row]), int(index.sizes[row])


class _Member(io.RawIOBase):
    """Bytes `start` to `start + size` of an open file, read at their place, so that threads do not meet."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._position = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"a place before the beginning: {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        wanted = min(len(buffer), max(0, self._size - self._position))
        if not wanted:
            return 0
        read = os.preadv(self._descriptor, [memoryview(buffer)[:wanted]], self._start + self._position)
        self._position += read
        return read
