"""YAML files read into typed, frozen settings."""

from artkv.config.art_encoders import ArtEncoderConfig, EfficientNetConfig
from artkv.config.loading import dump_config, load_config, override_config, recipe_path
from artkv.config.schema import (
    Config,
    DatasetConfig,
    DistributedConfig,
    EvaluationConfig,
    FrozenConfig,
    KVModulationConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    TrainableConfig,
    TrainingConfig,
)
from artkv.config.table_settings import ColumnsConfig

__all__ = [
    "ArtEncoderConfig",
    "ColumnsConfig",
    "Config",
    "DatasetConfig",
    "DistributedConfig",
    "EfficientNetConfig",
    "EvaluationConfig",
    "FrozenConfig",
    "KVModulationConfig",
    "LoraConfig",
    "ModelConfig",
    "RunConfig",
    "TrainableConfig",
    "TrainingConfig",
    "dump_config",
    "load_config",
    "override_config",
    "recipe_path",
]
