"""Where pictures lie in tar and Arrow files, found once and remembered in the user's cache; none is unpacked."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artkv.datasets.arrow_members import ARROW, read_arrow_members
from artkv.datasets.kept_arrays import keep, kept, kept_at
from artkv.datasets.members import Members
from artkv.datasets.tar_members import TAR, read_tar_members
from artkv.errors import UserError
from artkv.reading import open_regular, printable, remedy_for

# To be raised with any change of what is taken for a member, or of the arrays.
_FORMAT = 2
# A file changed so shortly before it was read could change again within a tick of its file system's clock.
SETTLED_SECONDS = 2.0
_READERS = {TAR: read_tar_members, ARROW: read_arrow_members}
_KINDS = {TAR: "tar", ARROW: "Arrow file"}
# What the files end with that pictures may lie in.
SHARD_SUFFIXES = tuple(_READERS)

# Of a file: its size, the time of its content and the time of its inode. The last moves even when a tool puts the
# others back.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class MemberIndex:
    """The pictures in a file: offset and size in bytes of each, (members,) int64, by the row of its name.

    stamp: of the file when it was read. other_names: see `Members`.
    """

    stamp: Stamp
    row_of_name: dict[str, int]
    offsets: np.ndarray
    sizes: np.ndarray
    other_names: list[tuple[str, int]]


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells that a file has not changed."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(changed_ns: int) -> bool:
    """Whether a file whose last change was then, in nanoseconds, could not change again without other times."""
    return changed_ns < time.time_ns() - SETTLED_SECONDS * 10**9


def read_member_index(path: Path) -> MemberIndex:
    """The index of a tar or an Arrow file, from the cache if the file is as it was then; else it is read.

    Raises `UserError` for a file that is damaged, or holds what cannot be read at its place.
    """
    place = f"{_KINDS[path.suffix]} {printable(path)}"
    remembered_at = kept_at("members", _FORMAT, os.path.realpath(path))
    try:
        with open_regular(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            if (arrays := kept(remembered_at, str(stamp))) is not None:
                return _index(stamp, _members(arrays))
            members = _READERS[path.suffix](file, stamp[0], place)
            is_same = stamp_of(os.fstat(file.fileno())) == stamp
    except OSError as error:
        remedy = remedy_for(error, "fetch it whole, or make it anew")
        raise UserError(f"{place}: cannot be read ({error.strerror or error}); {remedy}") from None
    if is_same and is_settled(max(stamp[1:])):
        keep(remembered_at, str(stamp), _arrays(members))
    return _index(stamp, members)


def _index(stamp: Stamp, members: Members) -> MemberIndex:
    row_of_name = {name: row for row, name in enumerate(members.names)}
    return MemberIndex(stamp, row_of_name, members.offsets, members.sizes, members.other_names)


def _arrays(members: Members) -> dict[str, np.ndarray]:
    return {
        "names": _text(members.names),
        "offsets": members.offsets,
        "sizes": members.sizes,
        "other_names": _text([name for name, _ in members.other_names]),
        "other_rows": np.array([row for _, row in members.other_names], dtype=np.int64),
    }


def _members(arrays: dict[str, np.ndarray]) -> Members:
    other_names = list(zip(_texts(arrays["other_names"]), arrays["other_rows"].tolist(), strict=True))
    return Members(_texts(arrays["names"]), arrays["offsets"], arrays["sizes"], other_names)


def _text(names: list[str]) -> np.ndarray:
    """Names, of which none is empty or holds a NUL character, as bytes."""
    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)


def _texts(names: np.ndarray) -> list[str]:
    return names.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(names) else []
