"""The mathematics of one optimizer step."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from artkv.batch import Batch
from artkv.distributed import World
from artkv.monitoring.stragglers import OwnTime
from artkv.training.engine import TrainingEngine


class NumberToHost:
    """A number on its way from the device to the host, which nobody waits for until it is read.

    On CUDA the copy is queued where this is made, and reading waits for that point of the queue alone: what was
    queued afterwards goes on.
    """

    def __init__(self, number: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._number = number
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> float:
        """The number."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._number)


class StepReport(NamedTuple):
    """What a step says of itself, on the device.

    loss_sum: this rank's summed token losses. answer_tokens: all ranks' and micro-steps' answer tokens.
    stop_votes: how many ranks asked to stop when it began.
    """

    loss_sum: Tensor
    answer_tokens: Tensor
    stop_votes: NumberToHost


def train_step(
    engine: TrainingEngine,
    batches: Sequence[Batch],
    learning_rate: float,
    world: World,
    own_time: OwnTime | None = None,
    asks_to_stop: bool = False,
) -> StepReport:
    """Forward, backward and update over this rank's micro-batches of one global step.

    The loss is the sum of token losses over the number of answer tokens of all ranks and micro-steps, so
    neither accumulation nor the number of ranks nor the fillers of a last step re-weight anything.
    All ranks meet here twice: in the count of tokens, and in DeepSpeed's reductions.
    """
    on_device = [batch.to(world.device, non_blocking=True) for batch in batches]
    tokens = torch.stack([batch.questions.answer_token_count() for batch in on_device]).sum()
    # The votes travel with the tokens, at no cost. The host reads them after the step, when DeepSpeed has long
    # waited for the device, to see whether the gradients are finite.
    totals = world.all_reduce_sum(torch.stack([tokens, torch.full_like(tokens, float(asks_to_stop))]))
    answer_tokens, stop_votes = totals[0], NumberToHost(totals[1])
    loss_sum = torch.zeros((), device=world.device)
    for batch in on_device:
        with nullcontext() if own_time is None else own_time.measured():
            answer_loss = engine.forward(batch)
        # DeepSpeed averages over ranks; times the world size, that is the sum.
        engine.backward(answer_loss.loss_sum * (world.size / answer_tokens))
        engine.step(learning_rate)
        loss_sum += answer_loss.loss_sum.detach()
    return StepReport(loss_sum, answer_tokens, stop_votes)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Re-seeds torch from (seed, step, rank), so that a checkpoint needs to hold no generator's state."""
    # 64-bit mix of three small numbers; the constants are SplitMix64's increment and a large prime.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0x100000001B3 + rank) % (1 << 63)
    torch.manual_seed(mixed)
