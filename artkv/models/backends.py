"""Chooses the backend that a config names."""

from collections.abc import Callable
from typing import Any

import torch

from artkv.config import FrozenConfig, ModelConfig
from artkv.frozen.host_blocks import Gather
from artkv.models.blip2_files import open_blip2
from artkv.models.lavis_backend import open_lavis_backbone
from artkv.models.loaded_blip2 import RESIDENT, LoadedBlip2, alone
from artkv.models.precision import resolve_dtype
from artkv.models.transformers_backend import open_transformers_backbone

# `World.together`.
Together = Callable[[Callable[[], Any]], Any]


def open_backbone(
    model: ModelConfig,
    device: torch.device,
    frozen: FrozenConfig = RESIDENT,
    together: Together = lambda action: action(),
) -> LoadedBlip2:
    """Opens BLIP-2 on the backend and in the dtype that `model` names; its weights are read by `load`.

    Raises:
        UserError: see `open_blip2` and `open_lavis_backbone`.
    """
    dtype = resolve_dtype(model.dtype, device)
    files = together(lambda: open_blip2(model))
    open_with = open_lavis_backbone if model.backend == "lavis" else open_transformers_backbone
    backbone: LoadedBlip2 = together(lambda: open_with(files, dtype, device, frozen))
    return backbone


def load_backbone(
    model: ModelConfig,
    device: torch.device,
    frozen: FrozenConfig = RESIDENT,
    gather: Gather = alone,
    together: Together = lambda action: action(),
) -> LoadedBlip2:
    """Opens and loads it. `gather` and `together` are those of `World`.

    Whatever is wrong with the files on one rank is known to all before they share host memory, where they wait.
    """
    return open_backbone(model, device, frozen, together).load(gather)
