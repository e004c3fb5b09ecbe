"""The mathematics of one optimizer step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from artkv.batch import Batch
from artkv.training.engine import TrainingEngine


def answer_token_count(batches: Sequence[Batch]) -> Tensor:
    """The answer tokens that count in these batches, shape (), float32, on their device."""
    return torch.stack([batch.questions.answer_token_count() for batch in batches]).sum()


def train_step(
    engine: TrainingEngine, batches: Sequence[Batch], learning_rate: float, answer_tokens: Tensor, world_size: int
) -> Tensor:
    """Forward, backward and update over this rank's micro-batches of one global step; their summed token losses.

    The loss is the sum of token losses over the number of answer tokens of all ranks and micro-steps, so
    neither accumulation nor the number of ranks nor the fillers of a last step re-weight anything.

    batches: on the device. answer_tokens: of all ranks' batches, shape ().
    """
    loss_sum = torch.zeros((), device=answer_tokens.device)
    for answer_loss in engine.losses(batches):
        # DeepSpeed averages over ranks; times the world size, that is the sum.
        engine.backward(answer_loss.loss_sum * (world_size / answer_tokens))
        engine.step(learning_rate)
        loss_sum += answer_loss.loss_sum.detach()
    return loss_sum


def seed_step(seed: int, step: int, rank: int) -> None:
    """Re-seeds torch from (seed, step, rank), so that a checkpoint needs to hold no generator's state."""
    # 64-bit mix of three small numbers; the constants are SplitMix64's increment and a large prime.
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0x100000001B3 + rank) % (1 << 63)
    torch.manual_seed(mixed)
