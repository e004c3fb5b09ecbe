"""What a training of the art encoder works with, before its first step: network, optimizer, loaders."""

import sys
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.batches import BalancedBatches, KeptBatches, PictureDataset
from artkv.art_encoder.data import StyleData
from artkv.art_encoder.losses import Loss, loss_of_heads
from artkv.art_encoder.state import Learnt
from artkv.art_encoder.timm_parts import (
    MovingAverage,
    Schedule,
    TargetMixer,
    averaged_model,
    create_classifier,
    create_optimizer,
    create_schedule,
    evaluation_transform,
    has_unused_parameters,
    masked_target_mixer,
    rates_without_effect,
    target_mixer,
    training_transform,
)
from artkv.art_encoder.workers import begin_worker
from artkv.distributed import World
from artkv.errors import UserError
from artkv.models.timm_networks import is_efficientnet

_PICTURES_FOR_STATISTICS = 2048  # at most; a mean and variance need no more
# Of one rank at once, on any number of ranks, so that the statistics are the same; a step's batch is of all ranks, and
# may be more than one has room for.
_STATISTICS_BATCH = 64


@dataclass(frozen=True)
class Parts:
    """What a training works with: the model that trains, its moving average, and this rank's part of the batches."""

    model: nn.Module
    averaged: MovingAverage
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    mixer: TargetMixer
    loss: Loss
    batches: BalancedBatches
    training_loader: DataLoader[tuple[Tensor, Tensor]]
    statistics_loader: KeptBatches
    validation_loader: KeptBatches
    has_unused: bool

    @property
    def learnt(self) -> Learnt:
        """What the state on disk holds."""
        return Learnt(self.model, self.averaged.module, self.optimizer)


def assemble(settings: ArtEncoderSettings, data: StyleData, world: World) -> Parts:
    """A training's parts before its first step, from the settings' seed; alike on all ranks, which do not meet here."""
    counts = [len(head.classes) for head in data.heads]
    torch.manual_seed(settings.seed)
    try:
        model, has_unused = _classifier(settings, sum(counts), world)
    except UserError as error:  # which speaks of the config of `artkv train`
        options = {"efficientnet.architecture": "--architecture", "efficientnet.checkpoint": "--initial-checkpoint"}
        raise UserError(reduce(lambda text, name: text.replace(name, options[name]), options, str(error))) from None
    model = model.to(world.device)
    if world.device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    averaged = averaged_model(model, settings.ema_decay)
    optimizer = create_optimizer(model, settings.learning_rate, settings.weight_decay)
    batches, training_loader, statistics_loader, validation_loader = _loaders(settings, data, world)
    total_steps = settings.epochs * len(batches)
    schedule = create_schedule(
        optimizer, total_steps, round(settings.warmup_fraction * total_steps), settings.minimum_learning_rate
    )
    mixing = (settings.label_smoothing, settings.mixup, settings.cutmix, settings.mix_probability)
    mixer = target_mixer(counts[0], *mixing) if len(counts) == 1 else masked_target_mixer(counts, *mixing)
    return Parts(
        model, averaged, optimizer, schedule, mixer, loss_of_heads(counts, world), batches, training_loader,
        statistics_loader, validation_loader, has_unused,
    )  # fmt: skip


def _classifier(settings: ArtEncoderSettings, num_classes: int, world: World) -> tuple[nn.Module, bool]:
    """The network on the CPU, and whether some of its parameters have no part in its output."""
    rates = {"drop_rate": settings.drop_rate, "drop_path_rate": settings.drop_path_rate}
    without = rates_without_effect(settings.architecture, rates)
    for name in without:
        if name in settings.model_fields_set:
            raise UserError(
                f"--{name.replace('_', '-')} {rates[name]}: {settings.architecture} has no such thing; leave it out"
            )
    if without and world.is_main:
        print(
            f"artkv: {settings.architecture} is trained without {' and '.join(without)}, which it does not take",
            file=sys.stderr,
        )
    model = create_classifier(
        settings.architecture,
        num_classes,
        settings.drop_rate,
        settings.drop_path_rate,
        settings.image_size,
        settings.initial_checkpoint,
    )
    if is_efficientnet(settings.architecture):  # of any size, and all of it used
        return model, False
    return model, has_unused_parameters(model, settings.architecture, settings.image_size, num_classes)


def _loaders(
    settings: ArtEncoderSettings, data: StyleData, world: World
) -> tuple[
    BalancedBatches,
    DataLoader[tuple[Tensor, Tensor]],
    KeptBatches,
    KeptBatches,
]:
    """The order of training, and loaders for training, for BatchNorm's statistics, and for validation."""
    augmented = training_transform(
        settings.architecture,
        settings.image_size,
        settings.smallest_crop,
        settings.horizontal_flip,
        settings.color_jitter,
    )
    as_used = evaluation_transform(settings.architecture, settings.image_size)
    training = PictureDataset(data.training, data.heads, augmented)
    validation = PictureDataset(data.validation, data.heads, as_used)
    # Statistics of training pictures, balanced like the training, in the view that the encoder gets in use.
    statistics = PictureDataset(data.training, data.heads, as_used)
    batches = BalancedBatches(training.drawn_by, settings.batch_size, settings.class_balance, settings.seed, world)
    size = min(settings.batch_size, _STATISTICS_BATCH)
    statistics_batches = list(BalancedBatches(training.drawn_by, size, settings.class_balance, settings.seed))
    own_statistics = statistics_batches[: _PICTURES_FOR_STATISTICS // size][world.rank :: world.size]
    common: dict[str, Any] = {
        "num_workers": settings.workers,
        "multiprocessing_context": "forkserver" if settings.workers else None,
        "worker_init_fn": begin_worker,
        "pin_memory": world.device.type == "cuda",
        # the loaders' own draws stay out of the global generator, which dropout uses
        "generator": torch.Generator().manual_seed(settings.seed),
    }
    own = Subset(validation, range(world.rank, len(validation), world.size))
    return (
        batches,
        DataLoader(training, batch_sampler=batches, persistent_workers=settings.workers > 0, **common),
        KeptBatches(DataLoader(statistics, batch_sampler=own_statistics, **common)),
        KeptBatches(DataLoader(own, batch_size=max(1, settings.batch_size // world.size), **common)),
    )
