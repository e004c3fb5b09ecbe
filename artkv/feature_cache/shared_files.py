"""Files that are whole or absent, however many jobs write the same folder at once."""

import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from artkv.errors import UserError
from artkv.files import publish, sync

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def write_shared(path: Path, content: bytes, replaces: bool = True) -> None:
    """Writes a file under a temporary name, brings it to the disk and gives it its name.

    The temporary file is locked as long as its writer lives, so that `remove_abandoned` knows the others.

    replaces: whether it takes the place of a file that is there; if not, see `publish`, that one is as good.

    Raises:
        UserError: if the folder is full, read-only or gone.
    """
    try:
        while replaces or not path.is_file():
            if _is_written(path, content, replaces):
                sync(path.parent)
                break
    except OSError as error:
        raise UserError(
            f"{path.parent}: {path.name} cannot be written ({error.strerror}); give frozen.feature_cache a folder that "
            "has room and that all hosts share"
        ) from None


def _is_written(path: Path, content: bytes, replaces: bool) -> bool:
    """False if the temporary file was taken for abandoned: before it was locked, or by a host that sees no locks."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with temporary.open("xb") as file:
        try:
            with suppress(OSError):  # no locks on this file system: nothing is ever removed on it
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:
                return False
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if replaces:
                temporary.replace(path)
            elif not publish(temporary, path):
                temporary.unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return True


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files of writers that were killed."""
    for path in folder.glob(".*.tmp"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with suppress(OSError), path.open("r+b") as file:  # NFS locks nothing for one alone that is open for reading
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
