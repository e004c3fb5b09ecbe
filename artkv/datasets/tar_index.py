"""Where the members of a tar file lie, found once and remembered in the user's cache, so that none is unpacked."""

import hashlib
import io
import os
import secrets
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from artkv.config.paths import user_cache
from artkv.errors import UserError
from artkv.files import sync
from artkv.reading import open_regular, printable, read_regular

_FORMAT = 1
_BLOCK = 512  # bytes
_MOST_MEMBERS = 20_000_000
# Of a remembered index, where a member takes its name and 16 bytes.
_MOST_INDEX_BYTES = 2**32
# A file changed so shortly before it was read could change again within a tick of its file system's clock.
_SETTLED_NS = 2 * 10**9
_REMAKE = "make the tar anew"
_FETCH = "fetch it whole, or make it anew"
# What other kinds of compression begin with.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}

# Of a file: its size, the time of its content and the time of its inode.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class TarIndex:
    """The regular files in a tar: offset and size in bytes of each, (members,) int64, by the row of its name.

    stamp: of the tar when it was read.
    """

    stamp: Stamp
    row_of_name: dict[str, int]
    offsets: np.ndarray
    sizes: np.ndarray


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells that a file has not changed."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_tar_index(path: Path) -> TarIndex:
    """The index of a tar, from the cache if the file is as it was then; else every header is read.

    Raises `UserError` for a file that is no whole, plain tar, or has a member that is no plain file within it.
    """
    place = f"tar {printable(path)}"
    try:
        with open_regular(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            kept = _kept_at(path)
            index = _remembered(kept, stamp)
            if index is not None:
                return index
            index = _read_headers(file, stamp, place)
            is_settled = stamp_of(os.fstat(file.fileno())) == stamp and max(stamp[1:]) < time.time_ns() - _SETTLED_NS
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror or error}); {_FETCH}") from None
    if is_settled:
        with suppress(OSError):  # a cache that cannot be written: the next start reads the headers again
            _remember(kept, index)
    return index


def _read_headers(file: BinaryIO, stamp: Stamp, place: str) -> TarIndex:
    begin = file.read(_BLOCK)
    kind = next((name for magic, name in _COMPRESSED.items() if begin.startswith(magic)), None)
    if kind is not None:
        raise UserError(f"{place}: is compressed ({kind}), and has no places to read from; unpack it to a plain tar")
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
                name = _checked_name(member, stamp[0], place)
                if row_of_name.setdefault(name, len(offsets)) != len(offsets):
                    raise UserError(f"{place}: member {name!r:.200} is there twice; keep one of them, and {_REMAKE}")
                offsets.append(member.offset_data)
                sizes.append(member.size)
                if len(offsets) > _MOST_MEMBERS:
                    raise UserError(f"{place}: holds more than {_MOST_MEMBERS:,} members; cut it into several")
            end = tar.offset
    except UserError:
        raise
    except Exception as error:  # ReadError; of forged headers ValueError, OverflowError, RecursionError, ...
        raise UserError(f"{place}: damaged ({printable(error)[:200] or type(error).__name__}); {_FETCH}") from None
    _check_end(file, end, place)
    return TarIndex(stamp, row_of_name, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64))


def _checked_name(member: tarfile.TarInfo, tar_bytes: int, place: str) -> str:
    """A member's name without `./`; `UserError` if it is no plain file that lies inside the tar."""
    what = f"{place}: member {member.name!r:.200}"
    if member.issym() or member.islnk():
        raise UserError(f"{what} is a link to {member.linkname!r:.200}; pack the file itself, with tar --dereference")
    if member.issparse():
        raise UserError(f"{what} is sparse, not stored in one piece; pack it without tar --sparse")
    if not member.isfile():
        raise UserError(f"{what} is no file but a device or a pipe; leave it out, and {_REMAKE}")
    name = os.path.normpath(member.name)
    if os.path.isabs(name) or name.split(os.sep)[0] in (os.pardir, os.curdir) or "\0" in name:
        raise UserError(f"{what} lies outside the tar; pack it below the folder that is packed, and {_REMAKE}")
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


def _kept_at(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return user_cache() / "tar_index" / f"format-{_FORMAT}" / f"{key}.index"


def _remember(kept: Path, index: TarIndex) -> None:
    names = "\0".join(index.row_of_name).encode("utf-8", "surrogateescape")
    content = io.BytesIO()
    np.savez(
        content, stamp=np.array(index.stamp), names=np.frombuffer(names, np.uint8), offsets=index.offsets,
        sizes=index.sizes,
    )  # fmt: skip
    body = content.getbuffer()
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{secrets.token_hex(6)}.tmp")  # of each writer: ranks start together
    try:
        temporary.write_bytes(hashlib.sha256(body).digest() + body)
        sync(temporary)
        temporary.replace(kept)
    finally:
        temporary.unlink(missing_ok=True)


def _remembered(kept: Path, stamp: Stamp) -> TarIndex | None:
    """The index of a tar with this stamp; None if there is none that is whole."""
    try:
        content = memoryview(read_regular(kept, _MOST_INDEX_BYTES))
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return None
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
            if tuple(arrays["stamp"].tolist()) != stamp:
                return None
            names, offsets, sizes = arrays["names"].tobytes(), arrays["offsets"], arrays["sizes"]
    except (OSError, ValueError, KeyError):
        return None
    split = names.decode("utf-8", "surrogateescape").split("\0") if names else []
    return TarIndex(stamp, {name: row for row, name in enumerate(split)}, offsets, sizes)
