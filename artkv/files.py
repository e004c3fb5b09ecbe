"""Files that others may read, and that a kill at any moment leaves whole or absent; their SHA-256."""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from artkv.errors import UserError

if TYPE_CHECKING:  # torch takes seconds, which `artkv status` need not wait for
    from torch import Tensor

# What a full disk answers; the second is a user's share of it.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Written to see whether a disk has room at all: a block of most file systems.
_PROBE_BYTES = 4096
# How the Rust of safetensors ends the message of an error that the system gave it.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file or folder beside `path`, and gives it its name when it is on the disk.

    Makes the folders above it. One writer at a time. A file that had the name is replaced; a folder must not be there,
    and holds files alone.
    """
    write_together({path: write})


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """As `write_whole`, for files that belong together: none gets its name before all are on the disk."""
    temporaries = {path: path.with_name(f".{path.name}.tmp") for path in writes}
    try:
        for path, temporary in temporaries.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)  # left by a killed writer
            writes[path](temporary)
            inside = sorted(temporary.iterdir()) if temporary.is_dir() else []
            for written in [*inside, temporary]:
                sync(written)
        for path, temporary in temporaries.items():
            temporary.replace(path)
            sync(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # as where a disk is full in the middle of a file
            error.filename = str(next(iter(writes)))
        for path, temporary in temporaries.items():
            if error.filename is not None and Path(os.fsdecode(error.filename)) == temporary:
                error.filename = str(path)  # the name that was given, and not one that nobody knows
        raise
    finally:
        for temporary in temporaries.values():
            with suppress(OSError):  # a disk that has just become read-only; what ended the writing shall be told
                remove(temporary)


def write_small(path: Path, content: bytes) -> None:
    """As `write_whole`, for a record below 4 KiB that has to get through to a full disk too, if it was there before.

    There the new record takes the old one's place on the disk, and blanks fill it up, as JSON allows.
    """
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        if error.errno not in NO_ROOM or not path.is_file():
            raise
        with path.open("r+b", buffering=0) as file:
            overwrite(file.fileno(), content)


def write_if_possible(path: Path, content: str) -> None:
    """Writes what only spares the next start its seconds: where it cannot be written there is nothing, and no error.

    Several ranks may write it at once; each replaces it whole.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)


def publish(temporary: Path, path: Path) -> bool:
    """Gives a file that is complete its name, unless there is a file of that name; whether it did.

    What others may have open or mapped is not replaced: on NFS before version 4 its content is gone with its name.
    """
    try:
        os.link(temporary, path)
    except OSError:
        if path.is_file():
            return False
        temporary.replace(path)  # on a file system without hard links
    else:
        temporary.unlink(missing_ok=True)
    return True


def overwrite(descriptor: int, content: bytes) -> None:
    """Puts a record, in one write, where another of about its length is, and makes sure that it is on the disk."""
    os.pwrite(descriptor, content.ljust(os.fstat(descriptor).st_size), 0)
    os.fsync(descriptor)


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Makes an `OSError` of the system a `UserError`: `what`, the reason and `remedy`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:  # a limit of the user's on each file, whatever room there is
            remedy = "raise `ulimit -f`, or write to another file system"
        remedy = remedy_for_writing(error, error.filename, remedy)
        raise UserError(f"{what}: cannot be written ({reason_of(error)}); {remedy}") from None


def remedy_for_writing(error: OSError, place: object, otherwise: str) -> str:
    """What to do where nothing can be written: `otherwise`, and first to give permission where that is what lacks.

    place: the file or folder that the error is of; None where that is not known.
    """
    if error.errno != errno.EACCES:
        return otherwise
    where = "" if place is None else f" {place}"
    return f"give this user permission to write there (chmod u+w{where}, and u+rwx for its folder), or {otherwise}"


def reason_of(error: Exception) -> str:
    """What the system says, such as `No space left on device`; of an error that is not the system's, its text."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def check_writable(path: Path, place: str) -> None:
    """Raises `UserError` unless a file or a new folder `path` can be made, or a file that is there be replaced.

    Call it before the work whose result goes there. Writes a block into a temporary file without a name, in the
    folder above `path` or the nearest that is there: rights alone do not tell a full or a read-only disk. Leaves
    nothing behind, whatever ends it.

    place: how the message names it, such as `--output x.html`.
    """
    remedy = "give another place"
    try:
        if path.name:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.with_name(f".{path.name}.tmp").lstat()  # a name that is too long to be written whole
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        remedy = remedy_for_writing(error, path, remedy)
        raise UserError(f"{place}: {path} cannot be written ({reason_of(error)}); {remedy}") from None
    else:
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f"{place}: {path} is a folder; give a file in it, or another place")
        if not stat.S_ISREG(found.st_mode) and not path.is_file():
            raise UserError(f"{place}: {path} is no regular file and would be replaced by one; {remedy}")
    check_folder_writable(path.parent, place)


def check_folder_writable(folder: Path, place: str) -> None:
    """Raises `UserError` unless files can be written into `folder`, or it can be made; see `check_writable`."""
    remedy = "give another place"
    try:
        above = next(path for path in [folder.absolute(), *folder.absolute().parents] if os.path.lexists(path))
        if not above.is_dir():
            raise UserError(f"{place}: {above} is not a folder that can be written; {remedy}")
        with tempfile.TemporaryFile(dir=above, buffering=0) as file:
            file.write(b"\0" * _PROBE_BYTES)
    except OSError as error:
        # Not by the error's own name, which is the probe's.
        remedy = remedy_for_writing(error, above, remedy)
        raise UserError(f"{place}: {above} cannot be written ({reason_of(error)}); {remedy}") from None


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
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

    safetensors 0.8 makes files that their owner alone can read, which a group's shared folder is no place for. What
    the system refuses is an `OSError` here, as with any other file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.unlink(missing_ok=True)
    path.touch()  # with the permissions wanted
    mode = path.stat().st_mode
    try:
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, dict(metadata))
    except SafetensorError as error:
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    path.chmod(mode)
