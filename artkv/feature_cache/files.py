"""Files that are whole or absent, however many jobs write the same folder at once."""

import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, brings it to the disk and renames it.

    The temporary file is locked as long as its writer lives, so that `remove_abandoned` knows the others.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        with temporary.open("xb") as file:
            with suppress(OSError):  # no locks on this file system: nothing is ever removed on it
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:  # taken for abandoned before it was locked
                continue
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        break
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files of writers that were killed."""
    for path in folder.glob(".*.tmp"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
