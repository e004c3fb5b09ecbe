"""One training on several ranks: the same batches as on one, their gradients averaged, BatchNorm over all of them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.batchnorm import BatchNormAcrossRanks
from artkv.art_encoder.timm_parts import with_synchronised_batchnorm
from artkv.distributed import ToHost, World, process_group, single_process
from artkv.errors import Preempted, RunFailed, UserError
from artkv.launcher_variables import launched_place


@contextmanager
def training_world(settings: ArtEncoderSettings) -> Iterator[World]:
    """The ranks that a launcher started; without one a process alone, which needs no process group."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA device here; give --device cpu or auto")
    if launched_place(os.environ) is None:
        yield world_of_one(settings)
        return
    try:
        with process_group(settings.timeout_minutes, on_cpu=settings.device == "cpu") as world:
            yield world
    except RunFailed as failure:
        raise RunFailed(str(failure).replace("distributed.timeout_minutes", "--timeout-minutes")) from None


def world_of_one(settings: ArtEncoderSettings) -> World:
    """This process alone, on the device of the settings."""
    return single_process(torch.device("cpu") if settings.device == "cpu" else None)


def check_batch_can_be_shared(settings: ArtEncoderSettings, world: World) -> None:
    """Raises UserError unless each rank gets as many pictures of a batch, in pairs where these are mixed."""
    is_mixed = bool(settings.mixup or settings.cutmix)
    unit = world.size * (2 if is_mixed else 1)
    if settings.batch_size % unit:
        up = -(-settings.batch_size // unit) * unit
        pairs = ", which mix them in pairs" if is_mixed else ""
        raise UserError(
            f"--batch-size {settings.batch_size}: are the pictures of a step on all ranks together, which {world.size} "
            f"ranks cannot share evenly{pairs}; give {up}",
            on_all_ranks=True,
        )


def trained_together(model: nn.Module, world: World, has_unused: bool) -> nn.Module:
    """The model, wrapped where there are several ranks: its gradients are then the mean over all of them.

    BatchNorm's statistics are those of all ranks' pictures, from PyTorch's SyncBatchNorm on GPUs and from
    `BatchNormAcrossRanks` on CPUs, where that one does not work. `model` itself gets these parts; its parameters and
    the names in its state stay.
    has_unused: whether some parameters have no part in the output, as in a few architectures.
    """
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        with_synchronised_batchnorm(model)
    else:
        for name, part in list(model.named_modules()):
            if isinstance(part, _BatchNorm):
                model.set_submodule(name, BatchNormAcrossRanks(part))
    return DistributedDataParallel(
        model,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        find_unused_parameters=has_unused,
    )


class Stops:
    """Whether any rank is asked to stop, which all ranks learn after the same step.

    reason: why this rank is, such as SIGTERM; None while it is not.
    """

    def __init__(self, world: World, reason: Callable[[], str | None]) -> None:
        self._world = world
        self._reason = reason
        self._before: ToHost | None = None

    def begin(self) -> None:
        """Forgets what was asked; call it on all ranks before the first step of an epoch."""
        self._before = None

    def is_asked(self) -> bool:
        """Call it on all ranks after each step.

        Of several ranks it tells what they said after the step before: to wait for this one would keep a GPU waiting.
        """
        if self._world.size == 1:
            return self._reason() is not None
        vote = torch.tensor([float(self._reason() is not None)], device=self._world.device)
        before, self._before = self._before, ToHost(self._world.all_reduce_sum(vote))
        return before is not None and before.read()[0] > 0

    def stop(self, step: int) -> None:
        """Raises `Preempted` on all ranks if one of them is asked to stop; call it where all that was done is saved."""
        reasons = [reason for reason in self._world.gather(self._reason()) if reason is not None]
        if reasons:
            raise Preempted(step, reasons[0])
