"""What a feature cache was made with, and why it does not fit what is wanted now."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from artkv.batch import EncoderIdentity
from artkv.errors import UserError
from artkv.reading import read_object, to_record

# Of the files, and of everything that is done to a picture that no other part of the fingerprint tells.
FORMAT = 2

# In the order in which they are told.
_REASONS = {
    "dtype": "features in {found}, but this run computes in {wanted} (model.dtype)",
    "vit_weights": "other ViT weights than model.blip2 has",
    "vit_settings": "a ViT of other settings than model.blip2 has ({found}, now {wanted})",
    "vit_view": "another size, mean or std of the ViT's pictures ({found}, now {wanted})",
    "art_weights": "other EfficientNet weights than efficientnet.checkpoint has",
    "art_view": "another efficientnet.image_size, mean or std ({found}, now {wanted})",
}


def to_json(identity: EncoderIdentity) -> str:
    """The text of `cache.json`."""
    return json.dumps({"format": FORMAT, **asdict(identity)}, indent=2, sort_keys=True) + "\n"


def digest(identity: EncoderIdentity) -> str:
    """SHA-256 of it all, which each shard carries."""
    return hashlib.sha256(to_json(identity).encode()).hexdigest()


def read(path: Path) -> EncoderIdentity:
    """What `cache.json` says; raises `UserError` for another format or a file that is none."""
    what, remedy = f"{path}: not a feature cache's description", _remedy(path.parent)
    try:
        tree = read_object(path, remedy)
    except UserError as error:
        raise UserError(f"{what} ({error})") from None
    if tree is None or "format" not in tree:
        raise UserError(f"{what}; {remedy}")
    found_format = tree.pop("format")
    if found_format != FORMAT:
        raise UserError(f"{path.parent}: a feature cache of format {found_format!r:.80}, not {FORMAT}; {remedy}")
    return to_record(EncoderIdentity, tree, what, remedy)


def check_identity(folder: Path, found: EncoderIdentity, wanted: EncoderIdentity) -> None:
    """Raises `UserError` with every reason why features of `found` are not those that `wanted` would compute.

    A wanted identity without an EfficientNet fits features that have one.
    """
    if wanted.art_weights is None:
        found = found.without_art()
    elif found.art_weights is None:
        raise UserError(
            f"frozen.feature_cache = {folder}: was made with kv_modulation.enabled: false, without EfficientNet "
            f"features; {_remedy(folder)}"
        )
    reasons = [
        reason.format(found=getattr(found, name), wanted=getattr(wanted, name))
        for name, reason in _REASONS.items()
        if getattr(found, name) != getattr(wanted, name)
    ]
    if reasons:
        raise UserError(f"frozen.feature_cache = {folder}: was made with {'; with '.join(reasons)}; {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"give another folder, or delete {folder}"
