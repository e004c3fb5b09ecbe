"""Finds the members of a tar file, in its headers."""

import tarfile
from typing import BinaryIO

import numpy as np

from artkv.datasets.members import MOST_MEMBERS, Members, checked_name
from artkv.errors import UserError
from artkv.file_kinds import TAR_ARCHIVE, is_packed, kind_of_file
from artkv.reading import printable

TAR = ".tar"
_BLOCK = 512  # bytes
_REMAKE = "make the tar anew"
_FETCH = "fetch it whole, or make it anew"


def read_tar_members(file: BinaryIO, num_bytes: int, place: str) -> Members:
    """The regular files in a tar; `UserError` unless it is whole and plain, and all in it are plain files within it.

    num_bytes: of the tar. place: the tar, for messages.
    """
    begin = file.read(_BLOCK)
    kind = kind_of_file(begin)
    if kind not in (None, TAR_ARCHIVE):
        remedy = "unpack it to a plain tar" if is_packed(kind) else _FETCH
        raise UserError(f"{place}: is {kind}, and no tar whose members can be read in place; {remedy}")
    if not begin:
        raise UserError(f"{place}: is empty (0 bytes); {_FETCH}")
    file.seek(0)
    row_of_name: dict[str, int] = {}
    offsets: list[int] = []
    sizes: list[int] = []
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for each
                if member.isdir():
                    continue
                name = _checked_name(member, num_bytes, place)
                if row_of_name.setdefault(name, len(offsets)) != len(offsets):
                    raise UserError(f"{place}: member {name!r:.200} is there twice; keep one of them, and {_REMAKE}")
                offsets.append(member.offset_data)
                sizes.append(member.size)
                if len(offsets) > MOST_MEMBERS:
                    raise UserError(f"{place}: holds more than {MOST_MEMBERS:,} members; cut it into several")
            end = tar.offset
    except UserError:
        raise
    except Exception as error:  # ReadError; of forged headers ValueError, OverflowError, RecursionError, ...
        raise UserError(f"{place}: damaged ({printable(error)[:200] or type(error).__name__}); {_FETCH}") from None
    _check_end(file, end, place)
    return Members(list(row_of_name), np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64), [])


def _checked_name(member: tarfile.TarInfo, tar_bytes: int, place: str) -> str:
    """A member's name without `./`; `UserError` if it is no plain file that lies inside the tar."""
    what = f"{place}: member {member.name!r:.200}"
    if member.issym() or member.islnk():
        raise UserError(f"{what} is a link to {member.linkname!r:.200}; pack the file itself, with tar --dereference")
    if member.issparse():
        raise UserError(f"{what} is sparse, not stored in one piece; pack it without tar --sparse")
    if not member.isfile():
        raise UserError(f"{what} is no file but a device or a pipe; leave it out, and {_REMAKE}")
    name = checked_name(member.name, what, f"tar; pack it below the folder that is packed, and {_REMAKE}")
    if member.offset_data + member.size > tar_bytes:
        raise UserError(f"{what} is cut off: the tar ends inside it, at byte {tar_bytes:,}; {_FETCH}")
    return name


def _check_end(file: BinaryIO, end: int, place: str) -> None:
    """Raises `UserError` unless a block of zeros follows the last member, and zeros alone follow that.

    `tarfile` takes a header that is damaged, but for the first, for the end of the tar.
    """
    file.seek(end)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise UserError(f"{place}: was cut off at byte {end + len(mark):,}, before its end mark; {_FETCH}")
    if any(mark):
        raise UserError(f"{place}: damaged: no header of a member at byte {end:,}; {_FETCH}")
    while rest := file.read(2**20):
        if rest.count(0) != len(rest):
            raise UserError(f"{place}: goes on after its end mark at byte {end:,}, as tars put together do; {_REMAKE}")
