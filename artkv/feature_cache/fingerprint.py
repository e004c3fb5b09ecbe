"""What the features of one encoder in a cache were made with, as text and as a name."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from artkv.batch import EncoderIdentity
from artkv.errors import UserError
from artkv.reading import read_object, to_record

# Of the files, and of everything that is done to a picture that no other part of the fingerprint tells.
FORMAT = 3


def to_json(identity: EncoderIdentity) -> str:
    """The text of an encoder's `cache.json`."""
    return json.dumps({"format": FORMAT, **asdict(identity)}, indent=2, sort_keys=True) + "\n"


def digest(identity: EncoderIdentity) -> str:
    """SHA-256 of it all, which each shard carries."""
    return hashlib.sha256(to_json(identity).encode()).hexdigest()


def folder_name(identity: EncoderIdentity) -> str:
    """The name of an encoder's folder in a cache: whatever its features depend on makes it another."""
    return f"{identity.encoder}-{digest(identity)[:16]}"


def read(path: Path) -> EncoderIdentity:
    """What an encoder's `cache.json` says; raises `UserError` for another format or a file that is none."""
    remedy = f"delete {path.parent}, it is made again"
    tree = _of_this_format(path, remedy)
    return to_record(EncoderIdentity, tree, f"{path}: not a feature cache's description", remedy)


def check_root(path: Path) -> None:
    """Raises `UserError` unless a cache's own `cache.json` is of this format."""
    _of_this_format(path, f"give another folder, or delete {path.parent}")


def _of_this_format(path: Path, remedy: str) -> dict[str, object]:
    what = f"{path}: not a feature cache's description"
    try:
        tree = read_object(path, remedy)
    except UserError as error:
        raise UserError(f"{what} ({error})") from None
    if tree is None or "format" not in tree:
        raise UserError(f"{what}; {remedy}")
    found_format = tree.pop("format")
    if found_format != FORMAT:
        raise UserError(f"{path.parent}: a feature cache of format {found_format!r:.80}, not {FORMAT}; {remedy}")
    return tree
