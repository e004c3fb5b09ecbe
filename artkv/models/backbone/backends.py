"""Chooses the backend that a config names."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import torch

from artkv.config import FrozenConfig, ModelConfig
from artkv.distributed import World
from artkv.models.backbone.blip2_backbone import Blip2Backbone
from artkv.models.backbone.lavis_backend import open_lavis_backbone
from artkv.models.backbone.transformers_backend import open_transformers_backbone
from artkv.models.files.blip2_files import Blip2Files, open_blip2


class _Opened(NamedTuple):
    model: ModelConfig
    files: Blip2Files
    stamps: list[tuple[int, ...]]


# What has been opened while `files_opened_once` lasts; None: it does not.
_OPENED: ContextVar[list[_Opened] | None] = ContextVar("opened", default=None)


@contextlib.contextmanager
def files_opened_once() -> Iterator[None]:
    """While it lasts BLIP-2's files are opened and checked once, however often a backbone is.

    A start opens one for the features' identity, for the tokenizer, and to be loaded. Files that have changed since are
    opened anew: features may take hours to compute.
    """
    token = _OPENED.set([])
    try:
        yield
    finally:
        _OPENED.reset(token)


def open_backbone(model: ModelConfig, frozen: FrozenConfig, world: World) -> Blip2Backbone:
    """Opens BLIP-2 on the backend and in the dtype that `model` names; its weights are read by `load`.

    Called on all ranks, which know of each other's errors.

    Raises:
        UserError: see `open_blip2` and `open_lavis_backbone`.
    """
    dtype = resolve_dtype(model.dtype, world.device)
    files = world.together(lambda: _open(model))
    open_with = open_lavis_backbone if model.backend == "lavis" else open_transformers_backbone
    return world.together(lambda: open_with(files, dtype, world.device, frozen))


def _open(model: ModelConfig) -> Blip2Files:
    opened = _OPENED.get()
    for known in opened or ():
        if known.model == model and known.stamps == _stamps(known.files.source.files):
            return known.files
    files = open_blip2(model)
    if opened is not None:
        opened.append(_Opened(model, files, _stamps(files.source.files)))
    return files


def _stamps(files: Sequence[Path]) -> list[tuple[int, ...]]:
    """What changes with each file; of one that is gone nothing."""
    found: list[tuple[int, ...]] = []
    for path in files:
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


def fetch_files(model: ModelConfig, world: World) -> None:
    """Has all ranks open BLIP-2's files, for which each host fetches what it lacks of the hub's: minutes or hours.

    Called on all ranks before one of them alone opens the files: the others would wait for it no longer than
    `distributed.timeout_minutes`.
    """
    if world.size > 1:
        world.together(lambda: _open(model))


def load_backbone(
    model: ModelConfig, frozen: FrozenConfig, world: World, kept_activation_bytes: int | None = None
) -> Blip2Backbone:
    """Opens and loads it, on all ranks; see `Blip2Backbone.load`.

    Whatever is wrong with the files on one rank is known to all before they share host memory, where they wait.
    """
    return open_backbone(model, frozen, world).load(world, kept_activation_bytes)


def resolve_dtype(setting: str, device: torch.device) -> torch.dtype:
    """`model.dtype` as a torch dtype; `auto` is bfloat16 where the device is fast at it, else float32.

    A CPU without bf16 units multiplies bf16 matrices at about a tenth of its fp32 rate (8 against
    79 GFLOP/s on two cores), one with AVX512-BF16 at four times it (793 against 192).
    """
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def dtype_note(setting: str, device: torch.device) -> str | None:
    """What a user of a GPU without bfloat16 has to know, where `model.dtype` leaves the choice; else None."""
    if device.type != "cuda" or setting != "auto" or resolve_dtype(setting, device) == torch.bfloat16:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} has no bfloat16: model.dtype is float32, which takes twice the memory "
        "and is several times as slow"
    )
