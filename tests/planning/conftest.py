"""The tiny model twice: in shapes, and for real."""

from collections.abc import Callable

import pytest
import torch

from artkv.config import Config, FrozenConfig
from artkv.models.loading import BuiltModel, build_model


@pytest.fixture
def settings(tiny_config: Config) -> Callable[..., Config]:
    """The tiny config with changed sections: `settings(kv_modulation={"gate": "zero"})`."""

    def changed(**sections: dict) -> Config:
        tree = tiny_config.model_dump()
        for section, values in sections.items():
            tree[section] |= values
        return Config.model_validate(tree)

    return changed


def build(config: Config) -> BuiltModel:
    """The real model, on the CPU, all of it resident, with the attention that it has on a GPU."""
    built = build_model(
        config.model, config.efficientnet, config.kv_modulation, config.trainable, FrozenConfig(opt="resident"),
        config.training.seed, torch.device("cpu"), config.training.activation_checkpointing,
    )  # fmt: skip
    built.model.backbone.language_model.set_attn_implementation("sdpa")
    return built
