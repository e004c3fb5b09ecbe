"""Files that others may read, and that a kill at any moment leaves whole or absent; their SHA-256."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # torch takes seconds, which `artkv status` need not wait for
    from torch import Tensor


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file or folder beside `path`, and gives it its name when it is on the disk.

    Makes the folders above it. One writer at a time. A file that had the name is replaced; a folder must not be there,
    and holds files alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)  # left by a killed writer
    try:
        write(temporary)
        inside = sorted(temporary.iterdir()) if temporary.is_dir() else []
        for written in [*inside, temporary]:
            sync(written)
        temporary.replace(path)
        sync(path.parent)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file's content or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(file: BinaryIO) -> str:
    """SHA-256 in hex of an open file from where it stands, read a MiB at a time.

    `hashlib.file_digest` came with Python 3.11.
    """
    sha = hashlib.sha256()
    while chunk := file.read(1 << 20):
        sha.update(chunk)
    return sha.hexdigest()


def save_tensors(tensors: Mapping[str, "Tensor"], path: Path, metadata: Mapping[str, str]) -> None:
    """safetensors' `save_file`, with the permissions that the user's umask gives to any other file.

    safetensors 0.8 makes files that their owner alone can read, which a group's shared folder is no place for.
    """
    from safetensors.torch import save_file

    path.unlink(missing_ok=True)
    path.touch()  # with the permissions wanted
    mode = path.stat().st_mode
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, dict(metadata))
    path.chmod(mode)
