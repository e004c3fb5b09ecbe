"""What stands between files that others wrote and the libraries that read them: bounds, and one message for anything.

A library's own checks are many and end in exceptions of every class; those are foreseen here as a whole, at the places
where files are read, and nowhere else.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artkv.errors import UserError
from artkv.reading import exists, open_regular, parse_json, printable, read_regular, remedy_for

# Bytes. The largest is a tokenizer's vocabulary, of some 20 million at most.
_MOST_SETTINGS_BYTES = 128 * 2**20
_MOST_REASON = 300  # characters


@contextmanager
def told_as(place: object, remedy: str) -> Iterator[None]:
    """Turns whatever a library raises inside into a `UserError` that names the place, the reason and the remedy."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # What a library in Rust raises when it panics is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{printable(place)}: cannot be read ({reason_of(error)}); {remedy}") from None


def reason_of(error: BaseException) -> str:
    """What a library says is wrong, on one line, without its advice to trust a file."""
    text = printable(" ".join(str(error).split()))
    if text and isinstance(error, KeyError):  # which is told by the key alone
        text = f"the key {text} is missing or unknown"
    sentences = [s for s in re.split(r"(?<=[.!?:]) ", text) if not re.search("weights_only|trust_remote_code", s)]
    text = " ".join(sentences)
    return (text if len(text) <= _MOST_REASON else f"{text[:_MOST_REASON]}...") or type(error).__name__


def shown(name: object) -> str:
    """A tensor's or a file's name for a message, which may be of any length and hold anything."""
    text = str(name)
    return printable(text if len(text) <= _MOST_REASON else f"{text[:_MOST_REASON]}...")


def check_regular(path: Path, place: object, remedy: str) -> None:
    """Raises a `UserError` where `path` is no regular file that may be read; nothing is waited for."""
    try:
        with open_regular(path):
            pass
    except FileNotFoundError:
        raise UserError(f"{printable(place)}: no such file; {remedy}") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); {remedy_for(error, remedy)}"
        raise UserError(f"{printable(place)}: {reason}") from None


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; `UserError` for anything else."""
    check_regular(path, path, remedy)
    with told_as(path, remedy):
        tree = parse_json(read_regular(path, _MOST_SETTINGS_BYTES))
    if not isinstance(tree, dict):
        raise UserError(f"{printable(path)}: holds a {type(tree).__name__}, where a JSON object belongs; {remedy}")
    return tree


def check_is_there(path: Path, place: str, remedy: str) -> None:
    """Raises `UserError` unless there is something at `path`; a folder that may not be looked into is another error.

    place: what the message begins with. remedy: where there is nothing.
    """
    try:
        is_there = exists(path)
    except OSError as error:
        told = f"cannot be looked into ({error.strerror}); {remedy_for(error, remedy)}"
        raise UserError(f"{place}: {printable(path.parent)} {told}") from None
    if not is_there:
        raise UserError(f"{place}: {printable(path.parent)} has no {path.name}; {remedy}")


def expanded(name: str | Path, setting: str) -> Path:
    """The path that a setting names, with `~` for its user's home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{setting} = {str(name)!r}: no such user; write the path out") from None


def is_folder(path: Path, setting: str) -> bool:
    """Whether there is a folder at `path`, and False where there is nothing; `UserError` for a file, or what is hidden.

    `Path.is_dir` raises for a name that is too long, and says no of a folder that may not be looked at.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{setting} = {str(path)!r:.300}: cannot be read ({reason}); {remedy_for(error, 'give another')}"
        ) from None
    if not path.is_dir():
        raise UserError(f"{setting} = {str(path)!r}: is a file, where a folder belongs; give the model's folder")
    return True
