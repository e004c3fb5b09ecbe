"""Files that somebody else may have written, damaged or planted: read within bounds, and into typed records."""

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from artkv.errors import UserError

T = TypeVar("T")

# Bytes. What artkv writes as JSON has some thousands; a config that a person writes too.
MOST_JSON_BYTES = 16 * 2**20

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def read_regular(path: Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file, with `most_bytes` at most.

    Raises an `OSError`, whose `strerror` says so, for a pipe or a device, which would be waited for without an end, and
    for a larger file, which is not read at all.
    """
    # A pipe that nobody writes to blocks whoever opens it, unless told not to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
            raise OSError(None, f"is {kind}, where a regular file belongs", str(path))
        if found.st_size > most_bytes:
            reason = f"has {found.st_size:,} bytes, more than the {most_bytes:,} that belong there"
            raise OSError(None, reason, str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes)
    finally:
        os.close(descriptor)


def parse_json(content: bytes | str, once: bool = False) -> Any:
    """What RFC 8259 calls JSON, in UTF-8; `ValueError` for anything else.

    NaN and Infinity, which Python's reader takes, are refused, and so is what nests deeper than its stack. once: refuse
    a key that an object has twice too, of which Python's reader keeps the last.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=_unique if once else None)
    except RecursionError:
        raise ValueError("lists or objects nest too deeply") from None


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
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    if not isinstance(tree, dict):
        raise UserError(f"{place}: holds {type(tree).__name__} where an object belongs; {remedy}")
    if missing := [name for name in names if name not in tree]:
        raise UserError(f"{place}: lacks {', '.join(missing)}; {remedy}")
    if unknown := [name for name in tree if name not in names]:
        raise UserError(
            f"{place}: has {', '.join(f'{name!r:.80}' for name in unknown[:5])}, which is unknown; {remedy}"
        )
    # Pydantic takes a plain dataclass's settings from this attribute.
    strict = {"__pydantic_config__": ConfigDict(strict=True, allow_inf_nan=False), "__annotations__": {}}
    try:
        read: Any = TypeAdapter(type(record.__name__, (record,), strict)).validate_json(json.dumps(tree))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{place}: {field} = {problem['input']!r:.80}: {problem['msg']}; {remedy}") from None
    return record(**{name: getattr(read, name) for name in names})
