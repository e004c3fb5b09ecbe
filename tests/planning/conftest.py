"""The tiny model for real, beside its shapes."""

import torch

from artkv.config import Config, FrozenConfig
from artkv.models.assembly import BuiltModel, build_model


def build(config: Config) -> BuiltModel:
    """The real model, on the CPU, all of it resident, with the attention that it has on a GPU."""
    built = build_model(
        config.model, config.efficientnet, config.kv_modulation, config.trainable, FrozenConfig(opt="resident"),
        config.training.seed, torch.device("cpu"), config.training.activation_checkpointing,
    )  # fmt: skip
    built.model.backbone.language_model.set_attn_implementation("sdpa")
    return built
