"""Finds everything in config, environment, data and models that would stop a run."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from artkv.config import Config, DatasetConfig, FrozenConfig
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.table import find_problems, read_table
from artkv.datasets.tokenized_table import tokenize_table, too_long_questions
from artkv.distributed import launched_place, single_process
from artkv.errors import UserError
from artkv.frozen.quantised import require_bitsandbytes
from artkv.models.backbone.backends import open_backbone, resolve_dtype
from artkv.models.efficientnet import load_efficientnet
from artkv.run_folder.run_lock import check_output_folder

_SPLITS = ("train", "val", "test")


def find_obstacles(config: Config) -> list[str]:
    """Every problem, one a line, each with its place and remedy; empty if a run can start.

    Every picture is decoded once, every tensor's name and shape compared; BLIP-2's weights are not read.
    """
    checks: list[Callable[[], Sequence[str] | None]] = [
        _check_environment,
        lambda: _check_quantisation(config.frozen),
        lambda: check_output_folder(config.run.output_dir),
        lambda: _check_deepspeed(config),
        lambda: _check_data(config.dataset, needs_val=config.evaluation.each_epoch),
        lambda: _check_blip2_and_texts(config),
        lambda: _check_art_encoder(config),
    ]
    obstacles: list[str] = []
    for check in checks:
        try:
            obstacles.extend(check() or ())
        except UserError as error:
            obstacles.append(str(error))
    return obstacles


def _check_environment() -> None:
    launched_place(os.environ)


def _check_quantisation(frozen: FrozenConfig) -> None:
    if frozen.opt in ("int8", "nf4"):
        require_bitsandbytes(frozen.opt)


def _check_deepspeed(config: Config) -> None:
    training = config.training
    is_bf16 = resolve_dtype(config.model.dtype, single_process().device) == torch.bfloat16
    tree = load_deepspeed_config(training.deepspeed)
    fill_deepspeed_config(tree, training, training.gradient_accumulation_steps, 1, is_bf16, 1)


def _check_data(dataset: DatasetConfig, needs_val: bool) -> list[str]:
    if dataset.image_root is None:
        return ["dataset.image_root is not set; give the folder that holds the pictures"]
    images = ImageIndex(dataset.image_root)
    obstacles = []
    for split in _SPLITS:
        path = getattr(dataset, split)
        if path is not None:
            try:
                obstacles += [str(problem) for problem in find_problems(path, images)]
            except UserError as error:
                obstacles.append(f"dataset.{split}: {error}")
        elif split == "train":
            obstacles.append("dataset.train is not set; give the CSV file to train on")
        elif split == "val" and needs_val:
            obstacles.append("dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false")
    return obstacles


def _check_blip2_and_texts(config: Config) -> list[str]:
    backbone = open_backbone(config.model, torch.device("cpu"))
    dataset = config.dataset
    if dataset.image_root is None:
        return []
    images = ImageIndex(dataset.image_root)
    obstacles = []
    for path in filter(None, (dataset.train, dataset.val, dataset.test)):
        with suppress(UserError):  # what is wrong with the table was told already
            table = read_table(path, images)
            tokenized, problems = tokenize_table(table, backbone.tokenizer, dataset.prompt)
            problems += too_long_questions(
                tokenized,
                table,
                backbone.num_query_tokens,
                config.evaluation.max_new_tokens,
                backbone.most_positions,
            )
            obstacles += [str(problem) for problem in sorted(problems, key=lambda problem: problem.line)]
    return obstacles


def _check_art_encoder(config: Config) -> None:
    if config.kv_modulation.enabled:
        load_efficientnet(config.efficientnet)
