"""Ids of the hub: which texts are one, and what the hub's answers mean to a user."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artkv.errors import UserError
from artkv.models.files.hub_failures import why_not_from_hub
from artkv.models.files.hub_ids import PART, REVISION, did_you_mean
from artkv.reading import printable

_ID = re.compile(rf"({PART}/{PART})(?:@({REVISION}))?")
# What begins or ends so is a path, there or not.
_PATH_BEGINS, _PATH_ENDS = ("outputs/", ".", "/", "~"), (".safetensors", ".yaml", ".pth", "/best", "/latest")


@dataclass(frozen=True)
class HubName:
    """`user/name`, or `user/name@revision` for a commit, tag or branch; None: what is newest."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_name(given: str | Path) -> HubName | None:
    """The id that a text is, if nothing of that name is on the disk; a path that exists wins.

    A `Path`, and what begins or ends as only paths do, is never an id.
    """
    text = str(given)
    if _is_path(given) or ".." in text or "--" in text:
        return None
    found = _ID.fullmatch(text)
    return None if found is None else HubName(found[1], found[2])


def check_names_something(given: str | Path) -> None:
    """Raises `UserError` for a text that is neither a path, there or mistyped, nor an id; it says what an id is."""
    text = str(given)
    if not _is_path(given) and "/" in text and hub_name(given) is None:
        raise UserError(
            f"{printable(text)[:200]}: no checkpoint there, and no id of the hub; {did_you_mean(text)}an id is "
            "USER/NAME or USER/NAME@REVISION, of letters, digits, '-', '_' and '.'; a path is such as outputs/demo/best"
        )


def _is_path(given: str | Path) -> bool:
    """Whether it can be a path alone.

    What is in a folder that is there is one, and so is outputs/dmeo, mistyped: no question to the hub.
    """
    text = str(given)
    if isinstance(given, Path) or text.startswith(_PATH_BEGINS) or text.endswith(_PATH_ENDS):
        return True
    return "\0" in text or os.path.lexists(text.split("/")[0])


def required_hub_name(given: str, revision: str | None) -> HubName:
    """The id that a text is, with a revision beside; `UserError` if it is none."""
    text = given if revision is None else f"{given}@{revision}"
    found = _ID.fullmatch(text)
    if revision is not None and (found is None or ".." in revision) and hub_name(given) is not None:
        raise UserError(
            f"--revision {printable(revision)[:200]!r}: is no name of a branch; give letters, digits, '-', '_', "
            "'/' and single '.'"
        )
    if found is None or ".." in text or "--" in given:
        raise UserError(
            f"{printable(text)[:200]!r}: is no id of the hub; {did_you_mean(text)}give USER/NAME, of letters, digits, "
            "'-', '_' and '.'"
        )
    return HubName(found[1], found[2])


@contextmanager
def told_by_hub(name: HubName, doing: str, sends: bool = False) -> Iterator[None]:
    """Makes what huggingface_hub raises a `UserError` that says what to do; `doing` such as `cannot be fetched`.

    sends: whether something is sent to the hub.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{name}: {doing}: {why_not_from_hub(error, name.revision, sends)}") from None
