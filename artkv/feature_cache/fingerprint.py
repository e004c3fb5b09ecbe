"""What a feature cache was made with, and why it does not fit what is wanted now."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from artkv.batch import EncoderIdentity
from artkv.errors import UserError
from artkv.reading import parse_json, read_regular

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
    try:
        tree: dict[str, Any] = parse_json(read_regular(path))
        found_format = tree.pop("format")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a feature cache's description ({error}); {_remedy(path.parent)}") from None
    if found_format != FORMAT:
        raise UserError(
            f"{path.parent}: a feature cache of format {found_format}, not {FORMAT}; {_remedy(path.parent)}"
        )
    names = {field.name for field in fields(EncoderIdentity)}
    if tree.keys() != names:
        raise UserError(f"{path}: not a feature cache's description; {_remedy(path.parent)}")
    return EncoderIdentity(**tree)


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
