"""Finds everything in config, environment, data and models that would stop a run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from artkv.config import Config, DatasetConfig, ModelConfig
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.table import find_problems
from artkv.distributed import launched_place, single_process
from artkv.errors import UserError
from artkv.models.efficientnet import load_efficientnet
from artkv.models.precision import resolve_dtype
from artkv.models.transformers_backend import open_transformers_folder

_SPLITS = ("train", "val", "test")


def find_obstacles(config: Config) -> list[str]:
    """Every problem, one a line, each with its place and remedy; empty if a run can start.

    Every picture is decoded once, every tensor's name and shape compared; BLIP-2's weights are not read.
    """
    checks: list[Callable[[], Iterator[str]]] = [
        _check_environment,
        lambda: _check_output(config.run.output_dir),
        lambda: _check_deepspeed(config),
        lambda: _check_data(config.dataset, needs_val=config.evaluation.each_epoch),
        lambda: _check_blip2(config.model),
        lambda: _check_art_encoder(config),
    ]
    obstacles: list[str] = []
    for check in checks:
        try:
            obstacles.extend(check())
        except UserError as error:
            obstacles.append(str(error))
    return obstacles


def _check_environment() -> Iterator[str]:
    launched_place(os.environ)
    yield from ()


def _check_output(output_dir: Path) -> Iterator[str]:
    existing = next(path for path in [output_dir.resolve(), *output_dir.resolve().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"run.output_dir = {output_dir}: {existing} is not a folder that can be written; give another"


def _check_deepspeed(config: Config) -> Iterator[str]:
    training = config.training
    is_bf16 = resolve_dtype(config.model.dtype, single_process().device) == torch.bfloat16
    tree = load_deepspeed_config(training.deepspeed)
    fill_deepspeed_config(tree, training, training.gradient_accumulation_steps, 1, is_bf16, 1)
    yield from ()


def _check_data(dataset: DatasetConfig, needs_val: bool) -> Iterator[str]:
    if dataset.image_root is None:
        yield "dataset.image_root is not set; give the folder that holds the pictures"
        return
    images = ImageIndex(dataset.image_root)
    for split in _SPLITS:
        path = getattr(dataset, split)
        if path is not None:
            try:
                yield from map(str, find_problems(path, images))
            except UserError as error:
                yield f"dataset.{split}: {error}"
        elif split == "train":
            yield "dataset.train is not set; give the CSV file to train on"
        elif split == "val" and needs_val:
            yield "dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false"


def _check_blip2(model: ModelConfig) -> Iterator[str]:
    open_transformers_folder(model.blip2)
    yield from ()


def _check_art_encoder(config: Config) -> Iterator[str]:
    if config.kv_modulation.enabled:
        load_efficientnet(config.efficientnet)
    yield from ()
