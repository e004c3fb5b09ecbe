"""What the errors of huggingface_hub mean to a user, and what of the environment leads to them."""

import os

from artkv.models.files.foreign_files import reason_of
from artkv.reading import printable

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


def why_not_from_hub(error: BaseException, revision: str | None) -> str:
    """Why the hub gave nothing, and the remedy.

    revision: the commit, tag or branch that was asked for.
    """
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it; give a commit, tag or branch that it has"
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access to it one by one; ask on its page, and {_LOG_IN}"
    if status == 403:
        return "the token may not do that (403); give one that may, with HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return f"the hub knows no such model, or it is private ({status}); check the name, and {_LOG_IN}"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return "it lacks a file that is needed; give the id of another model"
    if status is not None:
        return f"the hub answers {status}; try again, or look at its status page"
    return _without_an_answer(error)


def _without_an_answer(error: BaseException) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE is set; fetch it once without that, with a network"
    # What keeps the hub from being reached is told by a chain of errors, of which the last says least.
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for one in chain:
        if isinstance(one, OSError) and one.filename is not None:
            return (
                f"{printable(one.filename)}: {one.strerror}; HF_HOME, or HF_HUB_CACHE, must name a folder "
                "that can be written"
            )
    said = f"{type(chain[-1]).__name__}: {reason_of(chain[-1])}"
    return f"the hub is not reached ({said}); {_remedy()}"


def _remedy() -> str:
    """What of the environment to look at."""
    if endpoint := os.environ.get("HF_ENDPOINT"):
        return f"HF_ENDPOINT is {_shown(endpoint)}: give it as https://HOST, or unset it"
    for name in _PROXIES:
        if proxy := os.environ.get(name):
            return f"{name} is {_shown(proxy)}: give it as http://HOST:PORT, or unset it"
    return "look at the network, or set HF_HUB_OFFLINE=1 to use the cache"


def _shown(address: str) -> str:
    """An address without the password that may stand before its @."""
    return repr(address.rpartition("@")[2])[:200]
