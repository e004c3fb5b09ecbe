"""`artkv` with an infinite loss on rank 1 alone, in one micro-step."""

import os
from collections.abc import Sequence

import torch

from artkv.batch import Batch
from artkv.cli import main
from artkv.models.kv_modulated_blip2 import AnswerLoss, KVModulatedBlip2

# Counted from 0: with two micro-steps a step, the second one of the third step.
POISONED_MICRO_STEP = 5


def poison() -> None:
    forward, calls = KVModulatedBlip2.forward, iter(range(10_000))

    def poisoned(self: KVModulatedBlip2, batch: Batch) -> AnswerLoss:
        loss = forward(self, batch)
        return loss._replace(loss_sum=loss.loss_sum * torch.inf) if next(calls) == POISONED_MICRO_STEP else loss

    KVModulatedBlip2.forward = poisoned


def poisoned(arguments: Sequence[str]) -> int:
    if os.environ["RANK"] == "1":
        poison()
    return main(arguments)
