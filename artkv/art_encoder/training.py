"""Trains the art encoder: a network of timm that tells the styles of paintings apart, or more than styles.

One process, or the ranks of a launcher, on GPUs or the CPU. All randomness is seeded by (seed, epoch, rank), and the
state is written whole at the end of each epoch and where a training is asked to stop. So one that was killed at any
moment and resumed with as many ranks ends with the same weights, bit for bit on a CPU with the same number of threads,
as one that was not.

Letters in shapes are explained in `artkv.batch`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.batches import PictureDataset
from artkv.art_encoder.batchnorm import estimate_batchnorm
from artkv.art_encoder.data import StyleData, check_pictures, read_style_data
from artkv.art_encoder.losses import Loss, precision
from artkv.art_encoder.output import ArtEncoderFolder, add_to_curves, checkpoint_metadata, to_be_configured
from artkv.art_encoder.parts import Parts, assemble
from artkv.art_encoder.randomness import random_state, seed_epoch, set_random_state
from artkv.art_encoder.ranks import Stops, check_batch_can_be_shared, trained_together, world_of_one
from artkv.art_encoder.scores import ArtEncoderScores, evaluate
from artkv.art_encoder.state import Standing, StoppedEpoch, load_state, save_state, write_tensors
from artkv.art_encoder.timm_parts import TargetMixer
from artkv.art_encoder.workers import start_fork_server
from artkv.distributed import World
from artkv.errors import RunFailed, UserError
from artkv.monitoring.progress import ProgressLine
from artkv.monitoring.rank_log import lossy_console
from artkv.monitoring.tensorboard_log import TensorBoardLog
from artkv.run_folder.run_lock import RunLock, run_lock

# What may differ between a stop and a resume without changing the result, or is recorded otherwise: the data by
# digest, the initial weights by what they became.
_FREE_SETTINGS = {
    "data", "image_root", "validation", "validation_fraction", "initial_checkpoint", "output_dir", "resume",
    "workers", "device", "timeout_minutes",
}  # fmt: skip
_STEPS_BETWEEN_LOSS_READINGS = 20  # reading the loss waits for the device


@dataclass(frozen=True)
class ArtEncoderResult:
    """The best epoch's checkpoint, a safetensors file; what a config says to use it; and its scores."""

    checkpoint: Path
    setting: str
    classes: tuple[str, ...]
    epoch: int
    scores: ArtEncoderScores


@dataclass(frozen=True)
class _Going:
    """What the epochs go through. model: that of `Parts`, as it trains on all ranks together."""

    world: World
    model: nn.Module
    stops: Stops
    progress: ProgressLine


@dataclass(frozen=True)
class _TrainedEpoch:
    """What was done of an epoch. loss: the mean of its steps. losses: their sum on this rank, on the device."""

    steps: int
    seconds: float
    losses: Tensor
    loss: float
    is_stopped: bool


def train_art_encoder(
    settings: ArtEncoderSettings,
    world: World | None = None,
    stop_reason: Callable[[], str | None] = lambda: None,
    ready: Callable[[], object] = lambda: None,
) -> ArtEncoderResult:
    """Trains, evaluating the averaged weights each epoch, and keeps the best epoch's in the output folder.

    world: the ranks, which all call this; None: this process alone. stop_reason: why this rank should stop, if it
    should, which raises `Preempted` on all ranks once the state is saved. ready: called where a stop begins to have
    something to save.
    Progress goes to standard error: a bar on a terminal, lines elsewhere. Raises UserError where the data, a
    checkpoint or the output folder is not right, before the first step and before anything is written, and RunFailed
    where the loss stops being a finite number. A folder that another training is using is a UserError too.
    """
    world = world or world_of_one(settings)
    check_batch_can_be_shared(settings, world)
    # A terminal that is gone has sent SIGHUP, upon which the state is saved: no line of progress may fail before that.
    with run_lock(settings.output_dir, world, settings.timeout_minutes, "--output-dir") as lock, lossy_console():
        return _train(settings, world, stop_reason, ready, lock)


def _train(
    settings: ArtEncoderSettings,
    world: World,
    stop_reason: Callable[[], str | None],
    ready: Callable[[], object],
    lock: RunLock | None,
) -> ArtEncoderResult:
    folder = ArtEncoderFolder(settings)
    is_resumed = world.broadcast(world.on_main(lambda: folder.check(settings)))
    data = world.broadcast(world.on_main(lambda: _read(settings, folder)))
    assert data is not None
    parts = world.together(lambda: assemble(settings, data, world))
    # A setting that came later is left out where it changes nothing, for files from before it.
    free = _FREE_SETTINGS | ({"heads"} if data.is_of_styles_alone else set())
    run = {"settings": settings.model_dump(mode="json", exclude=free), "data": data.digest()}
    standing, stopped = Standing(), None
    if is_resumed:
        standing, stopped = world.together(lambda: load_state(folder.state, run, parts.learnt))
    # Last of what may be refused, for it takes minutes, and first to be written.
    world.on_main(lambda: check_pictures(data.training + data.validation, folder.checked))
    curves = world.on_main(lambda: _begin(folder, standing.epochs_done))
    steps = len(parts.batches)
    done = standing.epochs_done * steps + (stopped.steps if stopped else 0)
    going = _Going(
        world,
        trained_together(parts.model, world, parts.has_unused),
        Stops(world, stop_reason),
        ProgressLine(settings.epochs * steps, done, world.rank),
    )
    if settings.workers:
        start_fork_server(PictureDataset.__module__)
    ready()
    for epoch in range(standing.epochs_done + 1, settings.epochs + 1):
        trained = _train_epoch(settings, parts, going, epoch, stopped)
        world.on_main(lambda: lock.check() if lock else None)
        if trained.is_stopped:
            stopped = _stopped_epoch(trained, world)
            world.on_main(partial(save_state, folder.state, run, standing, parts.learnt, stopped))
            going.stops.stop((epoch - 1) * steps + trained.steps)
        stopped = None
        estimate_batchnorm(parts.averaged.module, parts.statistics_loader, world)
        scores = evaluate(parts.averaged.module, parts.validation_loader, data.heads, world)

        metrics = {
            "epoch": epoch,
            "step": epoch * steps,
            "train_loss": trained.loss,
            "learning_rate": parts.optimizer.param_groups[0]["lr"],
            **scores.metrics(),
            "train_seconds": trained.seconds,
            "pictures_per_second": steps * settings.batch_size / trained.seconds,
        }
        is_best = standing.improves(scores)
        standing.epochs_done = epoch
        if is_best:
            standing.best, standing.best_epoch = scores, epoch
        world.on_main(partial(_write_epoch, settings, data, folder, parts, (metrics, scores, is_best)))
        if curves is not None:
            add_to_curves(curves, metrics)
        # last, because what is written above is written again, the same, by a resume from the epoch before
        world.on_main(lambda: save_state(folder.state, run, standing, parts.learnt))
        going.progress.note(_summary(settings, metrics, is_best))
        if epoch < settings.epochs:
            going.stops.stop(epoch * steps)
    going.progress.close()
    if curves is not None:
        curves.close()
    return _result(settings, folder, data, standing, world)


def _result(
    settings: ArtEncoderSettings, folder: ArtEncoderFolder, data: StyleData, standing: Standing, world: World
) -> ArtEncoderResult:
    """The result of a training that is at its end; `UserError` if its checkpoint is gone."""
    if standing.best is None or not world.broadcast(world.on_main(folder.checkpoint.is_file)):
        raise UserError(
            f"{folder.checkpoint} is gone, though {folder.state} says that it was written; train in a new folder",
            on_all_ranks=True,
        )
    setting = to_be_configured(settings, folder.checkpoint)
    return ArtEncoderResult(folder.checkpoint, setting, data.classes, standing.best_epoch, standing.best)


def _read(settings: ArtEncoderSettings, folder: ArtEncoderFolder) -> StyleData:
    data = read_style_data(
        settings.data,
        settings.image_root,
        settings.validation,
        settings.validation_fraction,
        settings.seed,
        settings.head_names,
    )
    folder.check_scores(data)
    return data


def _begin(folder: ArtEncoderFolder, epochs_done: int) -> TensorBoardLog:
    """Opens the files that each epoch adds to, at the end of those that are done."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.keep_metrics(epochs_done)
    return TensorBoardLog(folder.path, purge_step=epochs_done + 1)


def _train_epoch(
    settings: ArtEncoderSettings, parts: Parts, going: _Going, epoch: int, stopped: StoppedEpoch | None
) -> _TrainedEpoch:
    """Trains on the batches of `epoch`, counted from 1, or on those after a stop in it."""
    world, num_batches = going.world, len(parts.batches)
    seed_epoch(settings.seed, epoch, world)
    losses = torch.zeros((), device=world.device)
    first, seconds = 0, 0.0
    if stopped is not None:
        first, seconds = stopped.steps, stopped.seconds
        losses += _go_on(stopped, world).to(world.device)
    parts.batches.epoch, parts.batches.first_batch = epoch, first
    started = time.perf_counter() - seconds
    going.model.train()
    going.stops.begin()
    before = (epoch - 1) * num_batches
    parts.schedule.step_update(before + first)  # the rate is that of the last step, where none is left
    number, is_stopped = first, False
    for number, (pixels, labels) in enumerate(parts.training_loader, start=first + 1):
        parts.schedule.step_update(before + number)
        on_device = pixels.to(world.device, non_blocking=True), labels.to(world.device, non_blocking=True)
        losses += train_on_batch(
            going.model, parts.optimizer, parts.mixer, parts.loss, on_device, settings.max_grad_norm
        )
        parts.averaged.update(parts.model, step=before + number)
        if number % _STEPS_BETWEEN_LOSS_READINGS == 0 or number == num_batches:
            going.progress.show(loss=_mean_loss(losses, number, before, epoch, world))
        going.progress.advance()
        is_stopped = going.stops.is_asked()
        if is_stopped:
            break
    mean = _mean_loss(losses, number, before, epoch, world)
    return _TrainedEpoch(number, time.perf_counter() - started, losses, mean, is_stopped)


def _go_on(stopped: StoppedEpoch, world: World) -> Tensor:
    """Puts this rank's random numbers where they were; returns the sum of its losses.

    With another number of ranks than then, all take an even part of the losses, and dropout draws anew.
    """
    if len(stopped.random_states) == world.size:
        set_random_state(stopped.random_states[world.rank], world.device)
        return stopped.losses[world.rank]
    own = random_state(world.device)
    set_random_state(
        stopped.random_states[0] | {name: own[name] for name in own if name in ("torch", "cuda")}, world.device
    )
    return stopped.losses.mean()


def _stopped_epoch(trained: _TrainedEpoch, world: World) -> StoppedEpoch:
    """What all ranks have to put back."""
    ranks = world.gather((trained.losses.cpu(), random_state(world.device)))
    return StoppedEpoch(
        trained.steps, trained.seconds, torch.stack([losses for losses, _ in ranks]), [state for _, state in ranks]
    )


def train_on_batch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    mixer: TargetMixer,
    loss_function: Loss,
    batch: tuple[Tensor, Tensor],
    max_grad_norm: float,
) -> Tensor:
    """One optimizer step on pixels (I, 3, E, E) and labels (I,) or (I, heads); the loss, shape (), on the device."""
    pixels, targets = mixer(*batch)
    with precision(pixels.device):
        logits = model(pixels)
    loss = loss_function(logits.float(), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return loss.detach()


def _mean_loss(losses: Tensor, number: int, before: int, epoch: int, world: World) -> float:
    """The mean of `number` steps and all ranks; `RunFailed` where it is none, on all ranks alike."""
    mean = world.all_reduce_sum(losses.clone()).item() / world.size / number
    if not math.isfinite(mean):
        raise RunFailed(
            f"the loss is {mean} in epoch {epoch}, at or before step {before + number}; lower --learning-rate, raise "
            "--warmup-fraction, and --resume or start again"
        )
    return mean


def _write_epoch(
    settings: ArtEncoderSettings,
    data: StyleData,
    folder: ArtEncoderFolder,
    parts: Parts,
    done: tuple[dict[str, Any], ArtEncoderScores, bool],
) -> None:
    """The epoch's metrics, and scores and weights where it is the best so far."""
    metrics, scores, is_best = done
    folder.add_metrics(metrics)
    if is_best:
        folder.write_scores(scores)
        metadata = checkpoint_metadata(settings, data, metrics["epoch"], scores)
        write_tensors(folder.checkpoint, parts.averaged.module.state_dict(), metadata)


def _summary(settings: ArtEncoderSettings, metrics: dict[str, Any], is_best: bool) -> str:
    """An epoch in a line."""
    means = {name: value for name, value in metrics.items() if name.startswith("mean_")}
    of_classes = ", ".join(
        f"mean over {name.removeprefix('mean_').removesuffix('_top1')}s {value:.3f}" for name, value in means.items()
    )
    return (
        f"epoch {metrics['epoch']}/{settings.epochs}: train loss {metrics['train_loss']:.3f}, top-1 "
        f"{metrics['top1']:.3f}, top-5 {metrics['top5']:.3f}, {of_classes}{' (best so far)' if is_best else ''}"
    )
