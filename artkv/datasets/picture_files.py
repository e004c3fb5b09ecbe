"""Opens picture files, be they files of their own or members of tar and Arrow files, which are shards here.

The path of a member goes through its shard as if that were a folder: `shards/00012.tar/a/b.jpg`.
"""

import io
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from artkv.datasets.member_index import SHARD_SUFFIXES, MemberIndex, Stamp, read_member_index, stamp_of
from artkv.reading import open_regular, printable

_IN_SHARD = re.compile("(?:" + "|".join(map(re.escape, SHARD_SUFFIXES)) + ")(?=/)")
_indices: dict[str, MemberIndex] = {}
_reading_index = threading.Lock()


class PictureFile(NamedTuple):
    """A picture file that is open for reading, the number of its bytes, and the stamp of what holds them."""

    file: BinaryIO
    num_bytes: int
    stamp: Stamp


@contextmanager
def open_picture_file(path: Path) -> Iterator[PictureFile]:
    """A regular file, or a member of a shard; `OSError`, whose `strerror` says why, for what is neither.

    Raises `UserError` for a shard that is damaged.
    """
    shard = shard_of(path)
    with open_regular(path if shard is None else shard) as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        if shard is None:
            yield PictureFile(file, stamp[0], stamp)
            return
        index = index_of(shard)
        if index.stamp != stamp:
            raise OSError(None, f"{printable(shard)} changed while it was being read", str(path))
        start, size = _place(index, path, shard)
        with io.BufferedReader(_Member(file.fileno(), start, size)) as member:
            yield PictureFile(member, size, stamp)


def picture_stamp(path: Path) -> Stamp:
    """What tells that a picture has not changed, of its file or of its shard; `OSError` where there is none."""
    return stamp_of(os.stat(shard_of(path) or path))


def picture_stamps(paths: Iterable[str]) -> np.ndarray | None:
    """`picture_stamp` of each, (paths, 3) int64; None where one is not there. Each shard is looked at once."""
    of_shard: dict[str, Stamp] = {}
    stamps: list[Stamp] = []
    shard = ""
    try:
        for path in paths:
            if not shard or not path.startswith(shard):
                found = shard_of(Path(path)) if _IN_SHARD.search(path) else None
                shard = "" if found is None else f"{found}{os.sep}"
            if shard and shard not in of_shard:
                of_shard[shard] = stamp_of(os.stat(shard[:-1]))
            stamps.append(of_shard[shard] if shard else stamp_of(os.stat(path)))
    except OSError:
        return None
    return np.array(stamps, dtype=np.int64).reshape(-1, 3)


def picture_bytes(path: Path) -> int:
    """The size of a picture's file; `OSError` where there is none."""
    shard = shard_of(path)
    return os.stat(path).st_size if shard is None else _place(index_of(shard), path, shard)[1]


def shard_of(path: Path) -> Path | None:
    """The shard that a path goes through; None if it goes through none, as through a folder that is named like one."""
    text = str(path)
    ends = (found.end() for found in _IN_SHARD.finditer(text))
    return next((Path(text[:end]) for end in ends if os.path.isfile(text[:end])), None)


def index_of(shard: Path) -> MemberIndex:
    """A shard's index, read once by a process as long as the file does not change; see `read_member_index`."""
    with _reading_index:
        known = _indices.get(str(shard))
        try:
            is_same = known is not None and known.stamp == stamp_of(os.stat(shard))
        except OSError:
            is_same = False
        if known is None or not is_same:
            known = _indices[str(shard)] = read_member_index(shard)
        return known


def _place(index: MemberIndex, path: Path, shard: Path) -> tuple[int, int]:
    row = index.row_of_name.get(os.path.relpath(path, shard))
    if row is None:
        raise FileNotFoundError(2, f"no such member of {printable(shard)}", str(path))
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
