"""What an id of the hub looks like, and which one a text means that is nearly one."""

import re

# Letters, digits and, between them, '-', '_' and '.', but no '--' and no '..'.
PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
REVISION = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
_SITE = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?")
# How a repository's page of files, or of one file, goes on behind its id.
_BEHIND = re.compile(r"/(?:tree|blob|resolve|raw|commit)/(?P<revision>[^/?#]+).*")
_ID = re.compile(rf"{PART}/{PART}")


def meant_id(text: str) -> str | None:
    """The id that an address of the hub, or an id with a slash or an @ too many, means: `user/name`; None if none."""
    if text.startswith("/"):
        return None  # a path
    site = _SITE.match(text)
    rest = text if site is None else re.sub(r"[?#].*", "", text[site.end() :])
    behind = _BEHIND.search(rest) if site is not None else None
    rest = rest if behind is None else rest[: behind.start()]
    bare = rest.split("@")[0].strip().strip("/").removesuffix(".git")
    bare = re.sub(r"/{2,}", "/", bare.replace("\\", "/"))
    return bare if bare != text and _ID.fullmatch(bare) and ".." not in bare and "--" not in bare else None


def did_you_mean(text: str) -> str:
    """What a remedy begins with where a text is nearly an id: `did you mean 'user/name'? `; else nothing."""
    meant = meant_id(text)
    return "" if meant is None else f"did you mean {meant!r}? "
