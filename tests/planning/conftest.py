"""The tiny model for real, beside its shapes."""

import torch

from artkv.config import Config, FrozenConfig
from artkv.distributed import single_process
from artkv.models.assembly import BuiltModel, build_model


def build(config: Config) -> BuiltModel:
    """The real model, on the CPU, all of it resident, with the attention that it has on a GPU."""
    resident = config.model_copy(update={"frozen": FrozenConfig(opt="resident", vit="resident", feature_cache=None)})
    built = build_model(resident, single_process(torch.device("cpu")))
    built.model.backbone.language_model.set_attn_implementation("sdpa")
    return built
