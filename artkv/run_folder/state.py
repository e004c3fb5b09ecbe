"""The records that a checkpoint is made of: what training changed, where the run stands, what it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artkv.reading import Count, Positive

if TYPE_CHECKING:  # torch takes seconds, which `artkv status` need not wait for
    from torch import Tensor


@dataclass(frozen=True)
class TrainableState:
    """What training changes: fp32 masters, Adam's moments and its step count, by parameter name.

    All tensors are fp32, on the CPU, in the parameters' shapes. Where nothing was trained yet the
    moments are empty and adam_step is 0.
    """

    masters: Mapping[str, "Tensor"]
    exp_avg: Mapping[str, "Tensor"]
    exp_avg_sq: Mapping[str, "Tensor"]
    adam_step: int


@dataclass(frozen=True)
class Progress:
    """Where a run stands; everything but the tensors that it goes on from.

    step: optimizer steps done. epoch: the epoch that the next step belongs to, from 0. groups_consumed:
    paintings' groups of that epoch already seen. questions_seen: over the whole run.
    validation_due: the step ended an epoch whose validation is not done yet. best_exact_match: the best
    validation EM so far, with the step that had it.
    """

    step: Count = 0
    epoch: Count = 0
    groups_consumed: Count = 0
    questions_seen: Count = 0
    skipped_steps: Count = 0
    nonfinite_steps_in_a_row: Count = 0
    validation_due: bool = False
    best_exact_match: float | None = None
    best_step: Count | None = None
    epochs_without_improvement: Count = 0


@dataclass(frozen=True)
class Identity:
    """What a resumed run must share with the saved one, for the order of questions to go on.

    data_hash: of the training table's paintings and questions, in order.
    dtype: what the model computes in, bfloat16 or float32.
    micro_batches_per_step: ranks times accumulation; the split between the two may change.
    """

    frozen_hash: str
    data_hash: str
    dtype: str
    micro_batches_per_step: Positive
