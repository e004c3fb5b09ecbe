"""Files and folders that a kill at any moment leaves whole or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


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
