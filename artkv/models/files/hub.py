"""The local folder of a model that a setting names: the folder itself, or the hub's copy of an id and a revision."""

import re
from pathlib import Path

from artkv.errors import UserError
from artkv.models.files.foreign_files import expanded, is_folder
from artkv.models.files.hub_failures import why_not_from_hub
from artkv.models.files.hub_ids import PART, did_you_mean

SETTINGS_FILES = ["*.json", "*.txt", "*.model"]

# Few are without a user's name, such as gpt2.
_HUB_ID = re.compile(rf"{PART}(/{PART})?")
# What a repository of BLIP-2 must have at least, by its names of files.
_PARTS = {
    "config.json": ("config.json",),
    "weights (*.safetensors, or *.bin)": ("*.safetensors", "*.bin"),
    "a tokenizer (tokenizer.json, or vocab.json)": ("tokenizer.json", "vocab.json"),
}
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(name: str) -> bool:
    """Whether a text can be an id of the hub, by how it is spelled."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def local_folder(name: str, setting: str, revision: str | None = None, with_weights: bool = True) -> Path:
    """The folder that `setting = name` means; what the hub has of it is fetched, or taken from its cache.

    revision: a commit, tag or branch of the hub; None: what is newest there. with_weights: False for its config alone.

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
    if name.startswith((".", "/", "~")):
        raise UserError(f"{setting} = {name!r:.300}: no such folder; give a hub id or an existing folder")
    if not is_hub_id(name):
        raise UserError(
            f"{setting} = {name!r:.300}: no such folder, and no hub id; {did_you_mean(name)}give an id such as "
            "Salesforce/blip2-opt-2.7b, or an existing folder"
        )
    from huggingface_hub import snapshot_download

    at = "" if revision is None else f" at model.revision = {revision!r}"
    wanted = [*SETTINGS_FILES, "*.safetensors"] if with_weights else ["config.json"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if with_weights and not any(folder.glob("*.safetensors")):  # a repository may hold the weights in both formats
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*SETTINGS_FILES, "*.bin"]))
    except Exception as error:
        raise UserError(
            f"{setting} = {name!r}{at}: no such folder, and not to be had from the hub: "
            f"{why_not_from_hub(error, revision)}; or download it and give its folder"
        ) from None
    # Told here, where the id is known, and not the cache's folder alone. Of OPT less may do.
    parts = _PARTS if with_weights else {"config.json": _PARTS["config.json"]}
    lacks = [what for what, patterns in parts.items() if not any(any(folder.glob(one)) for one in patterns)]
    if lacks and setting == "model.blip2":
        raise UserError(
            f"{setting} = {name!r}{at}: the hub has it, without {' and without '.join(lacks)}; give the id of a whole "
            "model, such as Salesforce/blip2-opt-2.7b, or a folder"
        )
    return folder


def moving_revision(revision: str | None, folder: Path) -> str | None:
    """What to know of a revision that is a branch or a tag: it may move. None for a commit, or for none at all.

    folder: of the hub's cache, which has the commit's name.
    """
    if revision is None or COMMIT.fullmatch(revision):
        return None
    pin = f": {folder.name}" if COMMIT.fullmatch(folder.name) else ""
    return f"model.revision = {revision!r}: a branch or tag, which moves; pin the commit{pin}"
