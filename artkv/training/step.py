"""The mathematics of one optimizer step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from artkv.batch import Batch
from artkv.distributed import World
from artkv.training.engine import TrainingEngine


class StepReport(NamedTuple):
    """What a step says of itself, on the device.

    loss_sum: this rank's summed token losses. answer_tokens: all ranks' and micro-steps' answer tokens.
    """

    loss_sum: Tensor
    answer_tokens: Tensor


def train_step(engine: TrainingEngine, batches: Sequence[Batch], learning_rate: float, world: World) -> StepReport:
    """Forward, backward and update over this rank's micro-batches of one global step.

    The loss is the sum of token losses over the number of answer tokens of all ranks and micro-steps, so
    neither accumulation nor the number of ranks nor the fillers of a last step re-weight anything.
    All ranks meet here twice: in the count of tokens, and in DeepSpeed's reductions.
    """
    on_device = [batch.to(world.device, non_blocking=True) for batch in batches]
    counts = torch.stack([batch.questions.answer_token_count() for batch in on_device])
    answer_tokens = world.all_reduce_sum(counts.sum())
    loss_sum = torch.zeros((), device=world.device)
    for batch in on_device:
        answer_loss = engine.forward(batch)
        # DeepSpeed averages over ranks; times the world size, that is the sum.
        engine.backward(answer_loss.loss_sum * (world.size / answer_tokens))
        engine.step(learning_rate)
        loss_sum += answer_loss.loss_sum.detach()
    return StepReport(loss_sum, answer_tokens)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Re-seeds torch from (seed, step, rank), so that a checkpoint needs to hold no generator's state."""
    # 64-bit mix of three small numbers; the constants are SplitMix64's increment and a large prime.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0x100000001B3 + rank) % (1 << 63)
    torch.manual_seed(mixed)
