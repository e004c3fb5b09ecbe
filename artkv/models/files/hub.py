"""The local folder of a model that a setting names: the folder itself, or the hub's copy of an id and a revision."""

import re
from pathlib import Path

from artkv.errors import UserError
from artkv.models.files.foreign_files import expanded, is_folder
from artkv.models.files.hub_failures import why_not_from_hub

SETTINGS_FILES = ["*.json", "*.txt", "*.model"]

COMMIT = re.compile(r"[0-9a-f]{40}")


def local_folder(name: str, setting: str, revision: str | None = None) -> Path:
    """The folder that `setting = name` means; what the hub has of it is fetched, or taken from its cache.

    revision: a commit, tag or branch of the hub; None: what is newest there.

    Raises:
        UserError: if there is neither such a folder nor such an id, or a revision was given for a folder.
    """
    folder = expanded(name, setting)
    if is_folder(folder, setting):
        if revision is not None:
            raise UserError(
                f"model.revision = {revision!r}: is for a hub id, and {setting} = {name!r} is a folder; leave it out"
            )
        return folder
    looks_like_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise UserError(f"{setting} = {name!r:.300}: no such folder; give a hub id or an existing folder")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*SETTINGS_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # a repository may hold the weights in both formats
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*SETTINGS_FILES, "*.bin"]))
        return folder
    except Exception as error:
        at = "" if revision is None else f" at model.revision = {revision!r}"
        raise UserError(
            f"{setting} = {name!r}{at}: no such folder, and not to be had from the hub: "
            f"{why_not_from_hub(error, revision)}; or download it and give its folder"
        ) from None


def moving_revision(revision: str | None, folder: Path) -> str | None:
    """What to know of a revision that is a branch or a tag: it may move. None for a commit, or for none at all.

    folder: of the hub's cache, which has the commit's name.
    """
    if revision is None or COMMIT.fullmatch(revision):
        return None
    pin = f": {folder.name}" if COMMIT.fullmatch(folder.name) else ""
    return f"model.revision = {revision!r}: a branch or tag, which moves; pin the commit{pin}"
