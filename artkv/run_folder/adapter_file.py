"""An adapter in one file: what a checkpoint trained, with what it takes to use it. safetensors, and JSON for metadata.

Metadata values are text in this format, so each is JSON: `format_version`, `base_model`, `step`,
`frozen_hash` and `sha256` (of the tensors), and a section of settings under its name: `model`, `efficientnet` or
`art_encoders`, `kv_modulation`, `trainable`, `frozen`, `evaluation`, `dataset` (the prompt alone) and `training` (the
seed alone).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from artkv.config import Config
from artkv.config.explaining import explain
from artkv.errors import UserError
from artkv.file_kinds import SAFETENSORS
from artkv.files import reason_of, save_tensors
from artkv.reading import Count, OtherVersion, check_regular, kind_at, parse_json, remedy_for, to_record

if TYPE_CHECKING:  # torch takes seconds, which a wrong --checkpoint need not wait for
    from torch import Tensor

FORMAT_VERSION = 1

# The prefix generator beside an exported model: in a transformers folder, or with a LAVIS file's name in front.
KV_PREFIX = "kv_prefix.safetensors"

_SECTIONS = ("model", "kv_modulation", "trainable", "frozen", "evaluation")
# Either of them, as the config is written.
_ENCODERS = ("efficientnet", "art_encoders")
_GIVE = "give a checkpoint's folder, or a file that artkv export --format adapter wrote"
_REMEDY = "the file is damaged, export it again"


@dataclass(frozen=True)
class _Description:
    """What the metadata of an adapter file says at least; sections are looked at by `Config`."""

    format_version: int
    base_model: str
    step: Count
    frozen_hash: str
    sha256: str
    model: dict[str, Any]
    kv_modulation: dict[str, Any]
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    evaluation: dict[str, Any]
    dataset: dict[str, Any]
    training: dict[str, Any]
    efficientnet: dict[str, Any] | None = None
    art_encoders: list[dict[str, Any]] | None = None


_NAMES = frozenset(_Description.__dataclass_fields__)


def write_adapter(
    path: Path,
    tensors: Mapping[str, "Tensor"],
    config: Config,
    frozen_hash: str,
    step: int,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes the trainables, by backend-neutral name, with the settings of `config` that they depend on.

    more: further metadata, as values that JSON knows.
    """
    tree = config.model_dump(mode="json")
    first, *others = _SECTIONS
    encoders = [name for name in _ENCODERS if tree[name] is not None]
    description: dict[str, Any] = {name: tree[name] for name in (first, *encoders, *others)}
    if config.frozen.feature_cache is not None:
        description["frozen"] |= {"feature_cache": "auto"}  # for a folder of this machine
    description |= {
        "format_version": FORMAT_VERSION,
        "base_model": config.model.blip2,
        "step": step,
        "frozen_hash": frozen_hash,
        "sha256": _sha256(tensors),
        "dataset": {"prompt": config.dataset.prompt},
        "training": {"seed": config.training.seed},
    }
    description |= more or {}
    metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in description.items()}
    save_tensors(tensors, path, metadata)


def read_description(path: Path) -> dict[str, Any]:
    """The metadata of an adapter file, each value read from JSON.

    Raises:
        UserError: if it is no adapter file, or of another version of the format.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        if (kind := kind_at(path)) is not None and kind != SAFETENSORS:
            raise UserError(f"{path}: is {kind}, and no adapter; {_GIVE}") from None
        remedy = remedy_for(error, "export it again")
        raise UserError(f"{path}: not a readable safetensors file ({reason_of(error)}); {remedy}") from None
    if not {"format_version", "frozen_hash", "sha256", "model"} <= metadata.keys():
        raise UserError(
            f"{path}: is no adapter of artkv export (its metadata has {sorted(metadata)[:5]!r:.300}); {_GIVE}"
        )
    description: dict[str, Any] = {}
    for name, text in metadata.items():
        if name != "format":
            try:
                description[name] = parse_json(text)
            except ValueError:
                raise UserError(f"{path}: its metadata's {name!r:.80} is not valid; {_REMEDY}") from None
    if description["format_version"] != FORMAT_VERSION:
        raise OtherVersion(
            f"{path}: has adapter format {description['format_version']!r:.80}, this artkv reads {FORMAT_VERSION}; "
            "use the version of artkv that wrote it"
        )
    known = {name: value for name, value in description.items() if name in _NAMES}
    if not known.keys().isdisjoint(_ENCODERS):
        known = dict.fromkeys(_ENCODERS) | known
    to_record(_Description, known, f"{path}: metadata", _REMEDY)
    if not isinstance(description["model"].get("blip2"), str):
        raise UserError(f"{path}: metadata: model.blip2 is no text; {_REMEDY}")
    return description


def is_beside_model(path: Path) -> bool:
    """Whether an adapter file is for the exported model that it was written beside; `UserError` if it is none."""
    return str(read_description(path)["base_model"]).startswith("./")


def adapter_config(path: Path, description: Mapping[str, Any]) -> Config:
    """The settings to use the adapter of `description` with; what the file does not say has its default.

    A base model with a path relative to the file, as `artkv export` writes beside a whole model, comes back absolute.
    """
    tree = {name: description[name] for name in (*_SECTIONS, "dataset", "training")}
    tree |= {name: description[name] for name in _ENCODERS if name in description}
    beside = path.parent / tree["model"]["blip2"]
    try:
        if tree["model"]["blip2"].startswith("./") and beside.exists():
            tree["model"] = tree["model"] | {"blip2": str(beside.resolve())}
    except (OSError, ValueError) as error:  # too long for a name, or a zero byte in it
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: metadata: model.blip2 = {tree['model']['blip2']!r:.80}: {reason}; {_REMEDY}"
        ) from None
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise OtherVersion(explain(error, Config, other_settings(path, "export it again"))) from None


def other_settings(path: Path, remedy: str) -> str:
    """What is told above the settings that this version does not take, each on a line of its own."""
    return f"{path}: its settings are not this version's; use the artkv that wrote it, or {remedy}:"


def adapter_tensors(path: Path, sha256: str) -> dict[str, "Tensor"]:
    """The trainables of an adapter file, verified by the checksum in its description."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    if _sha256(tensors) != sha256:
        raise UserError(f"{path}: its tensors do not match their checksum; the file is damaged, export it again")
    return tensors


def _sha256(tensors: Mapping[str, "Tensor"]) -> str:
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        sha.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
