"""What a config says of the art encoder whose file is at hand."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from artkv.config.art_encoders import ArtEncoderConfig

_USUAL = ArtEncoderConfig()


@dataclass(frozen=True)
class ArtEncoder:
    """An art encoder to be used.

    checkpoint: None where there is none yet. is_recorded: whether the file itself says the rest, and not a guess.
    """

    checkpoint: Path | None
    architecture: str = _USUAL.architecture
    image_size: int = _USUAL.image_size
    mean: tuple[float, ...] = _USUAL.mean
    std: tuple[float, ...] = _USUAL.std
    is_efficientnet: bool = True
    is_recorded: bool = False


def art_encoder_at(path: Path | None) -> ArtEncoder:
    """As `artkv art-encoder` recorded it in its file; else by the file's name and otherwise as is usual."""
    if path is None:
        return ArtEncoder(None)
    return _recorded(path) or ArtEncoder(path, _named(path))


def _recorded(path: Path) -> ArtEncoder | None:
    """None where the file records nothing of the kind, or nothing that a config would take."""
    from artkv.models.files.efficientnet_files import recorded_settings  # torch, which others need not wait for

    recorded = recorded_settings(path)
    try:
        given = {"architecture": recorded["architecture"], "image_size": int(recorded["image_size"])}
        scales = {key: json.loads(recorded[key]) for key in ("mean", "std") if key in recorded}
        taken = ArtEncoderConfig.model_validate(given | scales)
    except (KeyError, ValueError, ValidationError):
        return None
    is_efficientnet = "mean" not in recorded  # for it alone they are not recorded
    return ArtEncoder(path, taken.architecture, taken.image_size, taken.mean, taken.std, is_efficientnet, True)


def _named(path: Path) -> str:
    named = re.match(r"efficientnet_b[0-8]", path.name)
    return named[0] if named else _USUAL.architecture
