"""Chooses the backend that a config names."""

from collections.abc import Callable
from typing import Any

import torch

from artkv.config import FrozenConfig, ModelConfig
from artkv.frozen.host_blocks import Gather
from artkv.models.backbone import Blip2Backbone
from artkv.models.blip2_files import open_blip2
from artkv.models.lavis_backend import load_lavis_backbone, open_lavis_modules
from artkv.models.loaded_blip2 import RESIDENT, alone
from artkv.models.precision import resolve_dtype
from artkv.models.transformers_backend import load_transformers_backbone

# `World.together`.
Together = Callable[[Callable[[], Any]], Any]


def load_backbone(
    model: ModelConfig,
    device: torch.device,
    frozen: FrozenConfig = RESIDENT,
    gather: Gather = alone,
    together: Together = lambda action: action(),
    vit_alone: bool = False,
) -> Blip2Backbone:
    """Opens and loads BLIP-2 on the backend and in the dtype that `model` names; see `LoadedBlip2`.

    Whatever is wrong with the files on one rank is known to all before they share host memory, where they wait.

    Raises:
        UserError: see `open_blip2` and `open_lavis_modules`.
    """
    dtype = resolve_dtype(model.dtype, device)
    files = together(lambda: open_blip2(model))
    if model.backend == "lavis":
        modules = together(lambda: open_lavis_modules(files))
        return load_lavis_backbone(modules, files, dtype, device, frozen, gather, vit_alone)
    return load_transformers_backbone(files, dtype, device, frozen, gather, vit_alone)
