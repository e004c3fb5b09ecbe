"""Ids of the hub: which texts are one, and what the hub's answers mean to a user."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artkv.errors import UserError
from artkv.models.files.hub_failures import why_not_from_hub
from artkv.reading import printable

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_ID = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")


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
    if isinstance(given, Path) or ".." in text or "--" in text:
        return None
    found = _ID.fullmatch(text)
    # What is in a folder that is there is a path, and so is outputs/dmeo, mistyped: no question to the hub.
    is_path = os.path.lexists(text.split("/")[0]) or text.startswith("outputs/")
    if found is None or is_path or text.endswith((".safetensors", ".yaml", ".pth", "/best", "/latest")):
        return None
    return HubName(found[1], found[2])


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
            f"{printable(text)[:200]!r}: is no id of the hub; give USER/NAME, of letters, digits, '-', '_' and '.'"
        )
    return HubName(found[1], found[2])


@contextmanager
def told_by_hub(name: HubName, doing: str) -> Iterator[None]:
    """Makes what huggingface_hub raises a `UserError` that says what to do; `doing` such as `cannot be fetched`."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{name}: {doing}: {why_not_from_hub(error, name.revision)}") from None
