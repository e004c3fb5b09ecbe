"""Ids of the hub: which texts are one, and what the hub's answers mean to a user."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artkv.errors import UserError
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
        raise UserError(f"{name}: {doing}: {_reason(error, name)}") from None


def _reason(error: Exception, name: HubName) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {name.revision!r} of it; give a commit, tag or branch that it has"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access to it one by one; ask on its page, and {log_in}"
    if status == 403:
        return "the token may not do that (403); give one that may, with HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return f"the hub knows no such model, or it is private ({status}); check the name, and {log_in}"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "it is not in the cache, and HF_HUB_OFFLINE is set or there is no network; fetch it once with one"
    if isinstance(error, errors.EntryNotFoundError):
        return "it holds no model that artkv push has written; give the id of one"
    if status is not None:
        return f"the hub answers {status}; try again, or look at its status page"
    kind = type(error).__name__
    if isinstance(error, OSError) or "Connect" in kind or "Timeout" in kind or "Protocol" in kind or "Network" in kind:
        return f"the hub is not reached ({kind}); look at the network, or set HF_HUB_OFFLINE=1 to use the cache"
    return f"{kind}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
