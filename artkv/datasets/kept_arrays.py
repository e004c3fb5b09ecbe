"""Arrays that take long to make, in the user's cache: used if a file is whole and of the very same inputs alone."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from artkv.config.paths import user_cache
from artkv.errors import UserError
from artkv.files import file_sha256, publish, sync
from artkv.reading import open_regular

_SHA256_BYTES, _LENGTH_BYTES = 32, 8
_ALIGNMENT = 64  # of each array, so that it can be mapped
# The only types that are kept: of a place or a number, of a token, of a byte of text.
_TYPES = ("<i8", "<i4", "|u1")
# Longer than any run that has a file mapped: on NFS before version 4 one that is removed is gone from under it.
_UNUSED_DAYS = 30


def kept_at(kind: str, version: int, *names: object) -> Path | None:
    """The folder of what `names` tell from others of its kind, whose layout has this version.

    It has a file for each key: of a table one for each prompt, say. None where no home folder is known.
    """
    digest = hashlib.sha256(b"\0".join(os.fsencode(str(name)) for name in names)).hexdigest()[:32]
    try:
        return user_cache() / kind / f"format-{version}" / digest
    except UserError:
        return None


def keep(folder: Path | None, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays and the key of all that they were made from; a cache that cannot be written stays without.

    A file holds the SHA-256 of its other bytes, then the length of a head in JSON, the head, and the arrays. One that
    is whole is not replaced, for other runs may have it mapped; those that no run has begun with for long are removed.
    """
    if folder is None:
        return
    path = _file(folder, key)
    places, end = {}, 0
    for name, array in arrays.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        places[name] = (array.dtype.str, array.shape, start)
        end = start + array.nbytes
    head = json.dumps({"key": key, "arrays": places, "bytes": end}).encode()
    before = _SHA256_BYTES + _LENGTH_BYTES
    head = head.ljust(-(-(before + len(head)) // _ALIGNMENT) * _ALIGNMENT - before)
    with suppress(OSError):  # full or read-only: the next start makes the arrays again
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")  # of each writer: ranks start together
        try:
            with temporary.open("x+b") as file:
                file.write(bytes(_SHA256_BYTES) + len(head).to_bytes(_LENGTH_BYTES, "little") + head)
                begin = file.tell()
                for name, array in arrays.items():
                    file.seek(begin + places[name][2])
                    file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
                file.truncate(begin + end)
                file.seek(_SHA256_BYTES)
                sha = file_sha256(file)
                file.seek(0)
                file.write(bytes.fromhex(sha))
            sync(temporary)
            if not publish(temporary, path) and kept(folder, key) is None:
                temporary.replace(path)  # a damaged one
        finally:
            temporary.unlink(missing_ok=True)
    with suppress(OSError):
        _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    """Removes what no run has begun with for long: of all names, of layouts that were before, of killed writers."""
    oldest = time.time() - _UNUSED_DAYS * 86400
    for layout in folder.parent.parent.glob("format-*"):
        for root, folders, files in os.walk(layout, topdown=False):
            for name, remove in (*((name, os.unlink) for name in files), *((name, os.rmdir) for name in folders)):
                other = os.path.join(root, name)
                with suppress(OSError):  # another process was quicker; a folder that is not empty stays
                    if os.stat(other).st_mtime < oldest:
                        remove(other)


def kept(folder: Path | None, key: str) -> dict[str, np.ndarray] | None:
    """The arrays that were kept with this key, mapped from the file and read-only; None where there are none, whole.

    The processes of a host share the mapped pages.
    """
    if folder is None:
        return None
    path = _file(folder, key)
    try:
        with open_regular(path) as file:
            sha = file.read(_SHA256_BYTES)
            if bytes.fromhex(file_sha256(file)) != sha:
                return None
            file.seek(_SHA256_BYTES)
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            head = json.loads(file.read(length))
            if head["key"] != key:
                return None
            whole = np.memmap(file, np.uint8, "r", offset=0)
        with suppress(OSError):  # a cache that is read-only
            os.utime(path)
        body = whole[_SHA256_BYTES + _LENGTH_BYTES + length :]
        return {name: _array(body, *place) for name, place in head["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, cut off, or no such file at all
        return None


def _file(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrays"


def _array(body: np.ndarray, dtype: str, shape: list[int], start: int) -> np.ndarray:
    if dtype not in _TYPES:
        raise ValueError(f"arrays of {dtype!r} are not kept")
    num_bytes = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
    return np.asarray(body[start : start + num_bytes]).view(dtype).reshape(shape)
