"""Trains the art encoder: an EfficientNet that tells the styles of paintings apart.

Single process, one GPU or the CPU. All randomness is seeded by (seed, epoch), and the state is written whole at
the end of each epoch, so a training that was killed at any moment and resumed ends with the same weights, bit for
bit on a CPU with the same number of threads, as one that was not.

Letters in shapes are explained in `artkv.batch`.
"""

import csv
import json
import math
import multiprocessing
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.data import BalancedBatches, PictureDataset, StyleData, check_pictures, read_style_data
from artkv.art_encoder.state import ArtEncoderScores, Standing, StyleScore, load_state, save_state, write_tensors
from artkv.art_encoder.timm_parts import (
    MovingAverage,
    Schedule,
    TargetMixer,
    averaged_model,
    create_classifier,
    create_optimizer,
    create_schedule,
    evaluation_transform,
    soft_target_loss,
    target_mixer,
    training_transform,
)
from artkv.errors import RunFailed, UserError
from artkv.files import check_folder_writable
from artkv.monitoring.progress import ProgressLine
from artkv.monitoring.tensorboard_log import TensorBoardLog

_STATE_FILE = "state.safetensors"
# What may differ between a stop and a resume without changing the result, or is recorded otherwise: the data by
# digest, the initial weights by what they became.
_FREE_SETTINGS = {
    "data", "image_root", "validation", "validation_fraction", "initial_checkpoint", "output_dir", "resume",
    "workers", "device",
}  # fmt: skip
_STEPS_BETWEEN_LOSS_READINGS = 20  # reading the loss waits for the device
_PICTURES_FOR_STATISTICS = 2048  # at most; a mean and variance need no more


@dataclass(frozen=True)
class ArtEncoderResult:
    """The best epoch's checkpoint, a safetensors file that `efficientnet.checkpoint` can name, and its scores."""

    checkpoint: Path
    classes: tuple[str, ...]
    epoch: int
    scores: ArtEncoderScores


@dataclass(frozen=True)
class _Parts:
    """What a training works with: the model that trains, its moving average, and the batches of an epoch."""

    model: nn.Module
    averaged: MovingAverage
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    mixer: TargetMixer
    batches: BalancedBatches
    training_loader: DataLoader[tuple[Tensor, int]]
    statistics_loader: DataLoader[tuple[Tensor, int]]
    validation_loader: DataLoader[tuple[Tensor, int]]
    device: torch.device


def train_art_encoder(settings: ArtEncoderSettings) -> ArtEncoderResult:
    """Trains, evaluating the averaged weights each epoch, and keeps the best epoch's in the output folder.

    Progress goes to standard error: a bar on a terminal, lines elsewhere. Raises UserError where the data, a
    checkpoint or the output folder is not right, before the first step, and RunFailed where the loss stops being a
    finite number.
    """
    output = settings.output_dir
    state_file = output / _STATE_FILE
    if state_file.exists() and not settings.resume:
        raise UserError(f"{output} holds a training already; give --resume to go on, or another --output-dir")
    check_folder_writable(output, f"--output-dir {output}")
    data = read_style_data(
        settings.data, settings.image_root, settings.validation, settings.validation_fraction, settings.seed
    )
    parts = _assemble(settings, data)  # before the pictures are decoded, which takes minutes and leaves a file
    check_pictures(data.training + data.validation, output / "checked_pictures")
    run = {"settings": settings.model_dump(mode="json", exclude=_FREE_SETTINGS), "data": data.digest()}
    standing = Standing()
    if state_file.exists():
        standing = load_state(state_file, run, parts.model, parts.averaged.module, parts.optimizer)
    else:
        output.mkdir(parents=True, exist_ok=True)
    _keep_metrics(output / "metrics.jsonl", standing.epochs_done)
    curves = TensorBoardLog(output, purge_step=standing.epochs_done + 1)
    checkpoint = output / f"{settings.architecture}.safetensors"

    steps = len(parts.batches)
    progress = ProgressLine(settings.epochs * steps, standing.epochs_done * steps)
    for epoch in range(standing.epochs_done + 1, settings.epochs + 1):
        started = time.perf_counter()
        train_loss = _train_epoch(settings, parts, epoch, progress)
        train_seconds = time.perf_counter() - started
        estimate_batchnorm(parts.averaged.module, parts.statistics_loader, parts.device)
        scores = evaluate(parts.averaged.module, parts.validation_loader, data.classes, parts.device)

        metrics = {
            "epoch": epoch,
            "step": epoch * steps,
            "train_loss": train_loss,
            "learning_rate": parts.optimizer.param_groups[0]["lr"],
            "validation_loss": scores.loss,
            "top1": scores.top1,
            "top5": scores.top5,
            "mean_style_top1": scores.mean_style_top1,
            "train_seconds": train_seconds,
            "pictures_per_second": steps * settings.batch_size / train_seconds,
        }
        _append_metrics(output / "metrics.jsonl", metrics)
        _add_to_curves(curves, metrics)
        standing.epochs_done = epoch
        is_best = standing.improves(scores)
        if is_best:
            standing.best, standing.best_epoch = scores, epoch
            _write_per_style(output / "per_style.csv", scores)
            metadata = _checkpoint_metadata(settings, data.classes, epoch, scores)
            write_tensors(checkpoint, parts.averaged.module.state_dict(), metadata)
        # last, because what is written above is written again, the same, by a resume from the epoch before
        save_state(state_file, run, standing, parts.model, parts.averaged.module, parts.optimizer)
        progress.note(
            f"epoch {epoch}/{settings.epochs}: train loss {train_loss:.3f}, top-1 {scores.top1:.3f}, top-5 "
            f"{scores.top5:.3f}, mean over styles "
            f"{scores.mean_style_top1:.3f}{' (best so far)' if is_best else ''}"
        )
    progress.close()
    curves.close()
    if standing.best is None or not checkpoint.is_file():
        raise UserError(f"{checkpoint} is gone, though {state_file} says that it was written; train in a new folder")
    return ArtEncoderResult(checkpoint, data.classes, standing.best_epoch, standing.best)


def _assemble(settings: ArtEncoderSettings, data: StyleData) -> _Parts:
    """A training's parts before its first step, from the settings' seed."""
    device = _device(settings.device)
    torch.manual_seed(settings.seed)
    try:
        model = create_classifier(
            settings.architecture,
            len(data.classes),
            settings.drop_rate,
            settings.drop_path_rate,
            settings.initial_checkpoint,
        ).to(device)
    except UserError as error:  # which speaks of the config of `artkv train`
        options = {"efficientnet.architecture": "--architecture", "efficientnet.checkpoint": "--initial-checkpoint"}
        raise UserError(reduce(lambda text, name: text.replace(name, options[name]), options, str(error))) from None
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    averaged = averaged_model(model, settings.ema_decay)
    optimizer = create_optimizer(model, settings.learning_rate, settings.weight_decay)
    batches, training_loader, statistics_loader, validation_loader = _loaders(settings, data, device)
    total_steps = settings.epochs * len(batches)
    schedule = create_schedule(
        optimizer, total_steps, round(settings.warmup_fraction * total_steps), settings.minimum_learning_rate
    )
    mixer = target_mixer(
        len(data.classes), settings.label_smoothing, settings.mixup, settings.cutmix, settings.mix_probability
    )
    return _Parts(
        model, averaged, optimizer, schedule, mixer, batches, training_loader, statistics_loader, validation_loader,
        device,
    )  # fmt: skip


def _train_epoch(settings: ArtEncoderSettings, parts: _Parts, epoch: int, progress: ProgressLine) -> float:
    """Trains on the batches of `epoch`, counted from 1; returns their mean loss."""
    _seed_epoch(settings.seed, epoch)
    parts.batches.epoch = epoch
    losses = torch.zeros((), device=parts.device)
    parts.model.train()
    step = (epoch - 1) * len(parts.batches)
    for number, (pixels, styles) in enumerate(parts.training_loader, start=1):
        parts.schedule.step_update(step + number)
        on_device = pixels.to(parts.device), styles.to(parts.device)
        losses += train_on_batch(parts.model, parts.optimizer, parts.mixer, *on_device, settings.max_grad_norm)
        parts.averaged.update(parts.model, step=step + number)
        if number % _STEPS_BETWEEN_LOSS_READINGS == 0 or number == len(parts.batches):
            train_loss = _finite(losses.item() / number, epoch, step + number)
            progress.show(loss=train_loss)
        progress.advance()
    return train_loss


def train_on_batch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    mixer: TargetMixer,
    pixels: Tensor,
    styles: Tensor,
    max_grad_norm: float,
) -> Tensor:
    """One optimizer step on pixels (I, 3, E, E) and styles (I,); returns the loss, shape (), on the device."""
    pixels, targets = mixer(pixels, styles)
    with _precision(pixels.device):
        logits = model(pixels)
    loss = soft_target_loss()(logits.float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def estimate_batchnorm(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: torch.device) -> None:
    """Sets every BatchNorm's statistics to their mean over the loader's batches, and the model to eval mode.

    Averaged weights have no statistics of their own: those averaged along with them lag behind. Measured on
    EfficientNet-B0 from random weights, 108 steps, six styles: top-1 0.37 with the lagging ones, 0.52 with these.
    """
    model.eval()
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    for pixels, _ in loader:
        with _precision(device):
            model(pixels.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader[tuple[Tensor, int]], classes: Sequence[str], device: torch.device
) -> ArtEncoderScores:
    """Scores a classifier in eval mode on pictures that it was not trained on, each counted once."""
    model.eval()
    ranks, truths, losses = [], [], []
    for pixels, styles in loader:
        styles = styles.to(device)
        with _precision(device):
            logits = model(pixels.to(device))
        logits = logits.float()
        losses.append(nn.functional.cross_entropy(logits, styles, reduction="none"))
        true_logits = logits.gather(1, styles[:, None])
        # equal logits count against the model, so that a constant output is never right
        ranks.append((logits >= true_logits).sum(dim=1) - 1)
        truths.append(styles)
    rank, truth, loss = torch.cat(ranks).cpu(), torch.cat(truths).cpu(), torch.cat(losses).cpu()
    per_style = []
    for index, style in enumerate(classes):
        own = rank[truth == index]
        count = len(own)
        per_style.append(
            StyleScore(
                style,
                count,
                (own < 1).float().mean().item() if count else None,
                (own < 5).float().mean().item() if count else None,
            )
        )
    present = [score.top1 for score in per_style if score.top1 is not None]
    return ArtEncoderScores(
        loss=loss.mean().item(),
        top1=(rank < 1).float().mean().item(),
        top5=(rank < 5).float().mean().item(),
        mean_style_top1=sum(present) / len(present),
        per_style=tuple(per_style),
    )


def _loaders(
    settings: ArtEncoderSettings, data: StyleData, device: torch.device
) -> tuple[
    BalancedBatches, DataLoader[tuple[Tensor, int]], DataLoader[tuple[Tensor, int]], DataLoader[tuple[Tensor, int]]
]:
    """The order of training, and loaders for training, for BatchNorm's statistics, and for validation."""
    training = PictureDataset(
        data.training,
        data.classes,
        training_transform(
            settings.image_size, settings.smallest_crop, settings.horizontal_flip, settings.color_jitter
        ),
    )
    as_used = evaluation_transform(settings.image_size)
    validation = PictureDataset(data.validation, data.classes, as_used)
    # Statistics of training pictures, balanced like the training, in the view that the encoder gets in use.
    statistics = PictureDataset(data.training, data.classes, as_used)
    batches = BalancedBatches(training.styles, settings.batch_size, settings.class_balance, settings.seed)
    most = max(1, _PICTURES_FOR_STATISTICS // settings.batch_size)
    statistics_batches = list(batches)[:most]
    # A fork of a process that has threads can hang; a fork server has none, and imports what a worker needs once.
    multiprocessing.set_forkserver_preload([PictureDataset.__module__])
    common: dict[str, Any] = {
        "num_workers": settings.workers,
        "multiprocessing_context": "forkserver" if settings.workers else None,
        "pin_memory": device.type == "cuda",
        # the loaders' own draws stay out of the global generator, which dropout uses
        "generator": torch.Generator().manual_seed(settings.seed),
    }
    return (
        batches,
        DataLoader(training, batch_sampler=batches, persistent_workers=settings.workers > 0, **common),
        DataLoader(statistics, batch_sampler=statistics_batches, **common),
        DataLoader(validation, batch_size=settings.batch_size, **common),
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; give --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _seed_epoch(seed: int, epoch: int) -> None:
    """Seeds what draws in this process: dropout and stochastic depth from PyTorch, mixup from NumPy."""
    words = np.random.SeedSequence([seed, epoch, 2]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def _finite(loss: float, epoch: int, step: int) -> float:
    if not math.isfinite(loss):
        raise RunFailed(
            f"the loss is {loss} in epoch {epoch}, at or before step {step}; lower --learning-rate, raise "
            "--warmup-fraction, and --resume or start again"
        )
    return loss


def _checkpoint_metadata(
    settings: ArtEncoderSettings, classes: Sequence[str], epoch: int, scores: ArtEncoderScores
) -> dict[str, str]:
    return {
        "architecture": settings.architecture,
        "image_size": str(settings.image_size),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "epoch": str(epoch),
        "top1": repr(scores.top1),
    }


def _write_per_style(path: Path, scores: ArtEncoderScores) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["style", "n", "top1", "top5"])
        writer.writerows([score.style, score.count, score.top1, score.top5] for score in scores.per_style)


def _append_metrics(path: Path, record: Mapping[str, float]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def _keep_metrics(path: Path, epochs_done: int) -> None:
    """Drops the lines of epochs that will be done again, a half-written one included."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    path.write_text("".join(lines[:epochs_done]), encoding="utf-8")


def _add_to_curves(curves: TensorBoardLog, metrics: dict[str, Any]) -> None:
    """An epoch's point of each curve in TensorBoard, where epochs take the place of steps."""
    trained = {"loss": metrics["train_loss"], "learning_rate": metrics["learning_rate"]}
    curves.scalars(metrics["epoch"], "train", trained | {"pictures_per_second": metrics["pictures_per_second"]})
    scored = {name: metrics[name] for name in ("top1", "top5", "mean_style_top1")}
    curves.scalars(metrics["epoch"], "validation", scored | {"loss": metrics["validation_loss"]})
    curves.flush()
