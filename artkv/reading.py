"""Files that somebody else may have written, damaged or planted: read within bounds, and into typed records."""

import dataclasses
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn, TypeVar

from annotated_types import Ge, Le

from artkv.errors import UserError
from artkv.file_kinds import START_BYTES, is_lfs_pointer, kind_of_file, no_text_kind

T = TypeVar("T")

# Of records: what is counted, and what there is one of at least. Doubles hold as much, and so does all JSON.
Count = Annotated[int, Ge(0), Le(2**53)]
Positive = Annotated[int, Ge(1), Le(2**53)]

# Bytes. What artkv writes as JSON has some thousands; a config that a person writes too.
MOST_JSON_BYTES = 16 * 2**20

# Letters, marks and symbols of Unicode that have nothing to show: joiners, fillers, variation selectors, a blank.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))

# In JSON's texts: an escaped backslash, a pair that is one character, or a half without the other.
_ESCAPES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def read_regular(path: Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file, with `most_bytes` at most.

    Raises an `OSError`, whose `strerror` says so, for a pipe or a device, which would be waited for without an end, and
    for a larger file, which is not read at all.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > most_bytes:
            reason = f"has {num_bytes:,} bytes, more than the {most_bytes:,} that belong there"
            raise OSError(None, reason, str(path))
        return file.read(most_bytes)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading; `OSError`, whose `strerror` says so, for a folder, a pipe or a device.

    And `LfsPointer`, which is one, for what Git leaves in the place of a file that Git LFS keeps elsewhere.
    """
    if "\0" in str(path):
        raise OSError(None, "its name holds a NUL character, which no file has", str(path))
    # A pipe that nobody writes to blocks whoever opens it, unless told not to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
            raise OSError(None, f"is {kind}, where a regular file belongs", str(path))
        if found.st_size <= START_BYTES and is_lfs_pointer(os.pread(descriptor, START_BYTES, 0)):
            raise LfsPointer(None, "is a pointer of Git LFS, not the file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


class LfsPointer(OSError):
    """Git has not fetched a file's content; `remedy_for` knows what to do."""


def check_regular(path: Path) -> None:
    """Raises what `open_regular` raises: for what a library opens by its name, and would wait for without an end."""
    with open_regular(path):
        pass


def kind_at(path: Path) -> str | None:
    """What a file is by its first bytes, such as `a Parquet file`; None where they tell nothing, or cannot be read."""
    try:
        with open_regular(path) as file:
            return kind_of_file(file.read(START_BYTES))
    except OSError:
        return None


def remedy_for(error: BaseException, otherwise: str) -> str:
    """What to do about a file or folder that cannot be read: permission is given, or content fetched.

    otherwise: the remedy where something else is the matter.
    """
    if isinstance(error, LfsPointer):
        return "run git lfs pull"
    if not isinstance(error, PermissionError):
        return otherwise
    place = "it" if error.filename is None else printable(error.filename)
    mode = "u+r" if error.filename is None or not os.path.isdir(error.filename) else "u+rx"
    return f"give this user permission to read it (chmod {mode} {place}, and u+x for each folder above it)"


def exists(path: Path) -> bool:
    """Whether there is something at `path`, a link that leads nowhere included; `OSError` where that may not be known.

    `os.path.lexists` says no of what lies in a folder that may not be looked into.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_address(text: str) -> bool:
    """Whether what was given as a path is one of the web, of a bucket or the like; `Path` leaves one slash of two."""
    return re.match("[A-Za-z][A-Za-z0-9]{1,9}:/", text) is not None


def whole_system(folder: Path) -> str | None:
    """What a folder is that no data lie in: the root of all, or what the kernel makes up; None for any other."""
    real = os.path.realpath(folder)
    if real == "/":
        return "the root of the file system"
    is_virtual = real == "/dev" or real.split("/")[1] in ("proc", "sys")
    return "a file system that the kernel makes up" if is_virtual else None


class OtherVersion(UserError):
    """A file that is whole and was written by another version of artkv."""


def read_object(path: Path, remedy: str, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any] | None:
    """The JSON object in a file that artkv writes whole; None where there is no file.

    Raises `UserError` with the reason and `remedy` if the file cannot be read or holds anything else.
    """
    try:
        content = read_regular(path, most_bytes)
        if (kind := no_text_kind(content)) is not None:
            raise UserError(f"{path}: is {kind}, and not what artkv writes; {remedy}")
        tree = parse_json(content)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            return None
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy_for(error, remedy)}") from None
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not what artkv writes; {remedy}")
    return tree


def check_version(tree: dict[str, Any], newest: int, place: str) -> None:
    """Raises `OtherVersion` if `format_version` in `tree` is none that this artkv reads.

    Where it is missing the tree is of the time before there were versions, and gets the first one.
    """
    version = tree.setdefault("format_version", 1)
    if type(version) is not int or not 1 <= version <= newest:
        raise OtherVersion(
            f"{place}: has format {version!r:.80}, this artkv reads {newest}; use the version of artkv that wrote it"
        )


def printable(text: object) -> str:
    """A name or path for a message, on one line: what would act on a terminal comes escaped, as in a literal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, and characters without width such as U+200B."""
    if "!" <= text[:1] <= "~":  # of a million texts nearly all begin so
        return False
    return all(_is_unseen(character) for character in text)


def unseen_character(text: str) -> str | None:
    """The first character of a text that cannot be seen, by its code point; None where there is none but plain space.

    Such as U+200B (ZERO WIDTH SPACE), which comes with what is copied from web pages.
    """
    found = next((character for character in text if character not in " \t\r\n" and _is_unseen(character)), None)
    return None if found is None else f"U+{ord(found):04X} ({unicodedata.name(found, 'a control character')})"


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp") or character in _UNSEEN


def parse_json(content: bytes | str, once: bool = False) -> Any:
    """What RFC 8259 calls JSON, in UTF-8; `ValueError` for anything else.

    NaN and Infinity, which Python's reader takes, are refused, and so is what nests deeper than its stack. once: for
    what a person wrote; refuse a key that an object has twice too, of which Python's reader keeps the last, and half of
    a character, which no UTF-8 has.
    """
    try:
        if once:
            _check_whole_characters(content)
        return json.loads(
            content,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            object_pairs_hook=_unique if once else None,
        )
    except RecursionError:
        raise ValueError("lists or objects nest too deeply") from None
    except ValueError:
        start = content if isinstance(content, bytes) else content[:START_BYTES].encode("utf-8", "replace")
        if (kind := no_text_kind(start)) is not None:
            raise ValueError(f"it is {kind}") from None
        raise


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python's own advice is to raise a limit of its own
        raise ValueError(f"the number {text[:20]}... has {len(text):,} digits") from None


def _check_whole_characters(content: bytes | str) -> None:
    r"""Raises `ValueError`, with the line, for an escape such as \ud800 that is no half of a pair."""
    text = content if isinstance(content, str) else content.decode("utf-8", "replace")
    for found in _ESCAPES.finditer(text):
        if found["half"] is not None:
            line = text.count("\n", 0, found.start()) + 1
            raise ValueError(f"line {line} has {found[0]}, which is half of a character")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} is given twice")
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def to_record(record: type[T], tree: Any, place: str, remedy: str) -> T:
    """`tree`, as `parse_json` gives it, as the dataclass `record`; `UserError` that names what differs, and `remedy`.

    Each field must be there, whatever its default, and no other; a value has its field's type, and a number is finite.
    """
    from pydantic import ValidationError  # half of the time that `artkv status` takes

    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    if not isinstance(tree, dict):
        raise UserError(f"{place}: holds {type(tree).__name__} where an object belongs; {remedy}")
    if missing := [name for name in names if name not in tree]:
        raise UserError(f"{place}: lacks {', '.join(missing)}; {remedy}")
    if unknown := [name for name in tree if name not in names]:
        raise UserError(
            f"{place}: has {', '.join(f'{name!r:.80}' for name in unknown[:5])}, which is unknown; {remedy}"
        )
    try:
        read: Any = _strict_reader(record).validate_json(json.dumps(tree))  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{place}: {field} = {problem['input']!r:.80}: {problem['msg']}; {remedy}") from None
    return record(**{name: getattr(read, name) for name in names})


def object_at(tree: Any, key: str, record: type | None = None) -> dict[str, Any]:
    """The object under a key of what somebody may have written; `ValueError` that names the key for anything else.

    record: the dataclass whose fields it has, each and no other; None for whatever it holds.
    """
    if not isinstance(tree, dict) or key not in tree:
        raise ValueError(f"it lacks {key!r:.80}")
    if not isinstance(value := tree[key], dict):
        raise ValueError(f"{key} = {value!r:.80}, where an object belongs")
    names = value if record is None else [field.name for field in dataclasses.fields(record)]
    if sorted(value) != sorted(names):
        raise ValueError(f"{key} has {', '.join(sorted(value)) or 'nothing'}, not {', '.join(names)}")
    return value


def from_written(make: Callable[[Any], T], tree: Any, place: str, remedy: str) -> T:
    """The dataclass that `make` makes of JSON that another `make` wrote, each value of its field's type at any depth.

    Raises `UserError` that names what differs, and `remedy`.
    """
    try:
        made = make(tree)
        plain = dataclasses.asdict(made)  # type: ignore[call-overload]
        return to_record(type(made), plain, place, remedy)
    except KeyError as error:
        raise UserError(f"{place}: cannot be read (it lacks {error}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{place}: cannot be read ({error!s:.300}); {remedy}") from None
    except (TypeError, AttributeError, RecursionError):  # of Python's own, which tell nothing to who wrote the file
        raise UserError(f"{place}: cannot be read (it is not what artkv writes there); {remedy}") from None


@cache
def _strict_reader(record: Any) -> Any:
    """Pydantic's reader of a plain dataclass, whose settings it takes from this attribute."""
    from pydantic import ConfigDict, TypeAdapter

    strict = {"__pydantic_config__": ConfigDict(strict=True, allow_inf_nan=False), "__annotations__": {}}
    return TypeAdapter(type(record.__name__, (record,), strict))
