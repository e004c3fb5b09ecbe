"""The order of questions, as pure functions: which questions a step trains on, on which rank.

A group is what stays together: a painting's questions, or a piece of them where they are more than a
micro-batch holds. A micro-batch is some whole groups, at most batch_size questions. A global step is M
micro-batches in a row, M = world * gradient accumulation, so the same M gives the same steps on any
number of ranks. Nothing here depends on the ranks except who takes which micro-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from artkv.errors import UserError


@dataclass(frozen=True)
class PaintingRows:
    """The rows of each painting, in the order of the table.

    rows: (rows,) int64, grouped by painting. offsets: (paintings + 1,) int64, where each begins.
    """

    rows: np.ndarray
    offsets: np.ndarray

    @property
    def num_paintings(self) -> int:
        return len(self.offsets) - 1

    def of(self, painting: int) -> np.ndarray:
        """The rows of one painting."""
        return self.rows[self.offsets[painting] : self.offsets[painting + 1]]


@dataclass(frozen=True)
class MicroBatch:
    """The questions of one micro-step: their row numbers, and whether they only fill a step up."""

    rows: np.ndarray
    is_filler: bool = False


def rows_by_painting(painting_of_row: np.ndarray) -> PaintingRows:
    """Groups a table's rows by painting; paintings are numbered from 0 and each has a row."""
    rows = np.argsort(painting_of_row, kind="stable").astype(np.int64)
    counts = np.bincount(painting_of_row)
    return PaintingRows(rows, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def painting_order(num_paintings: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the paintings, (num_paintings,) int64, that depends on seed and epoch alone.

    It sorts PCG64's raw numbers rather than calling `Generator.permutation`: NumPy promises the raw
    stream of a bit generator for ever, its Generator's methods may change.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_paintings)
    return np.argsort(raw, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's micro-batches, in order; the same whatever the ranks.

    rows: (rows,) int64, all rows in the order in which they are asked. row_offsets: (micro-batches + 1,)
    int64, where each micro-batch begins in rows. groups_before: (micro-batches + 1,) int64, how many
    groups lie before each micro-batch; the last is the epoch's number of groups.
    """

    rows: np.ndarray
    row_offsets: np.ndarray
    groups_before: np.ndarray

    @property
    def num_micro_batches(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_groups(self) -> int:
        return int(self.groups_before[-1])

    def num_steps(self, micro_batches_per_step: int) -> int:
        """Global steps in the epoch, the last one filled up."""
        return -(-self.num_micro_batches // micro_batches_per_step)

    def __getitem__(self, index: int) -> MicroBatch:
        """The micro-batch at `index` of the epoch, 0 to num_micro_batches - 1."""
        if not 0 <= index < self.num_micro_batches:
            raise IndexError(f"micro-batch {index} of {self.num_micro_batches}")
        return MicroBatch(self.rows[self.row_offsets[index] : self.row_offsets[index + 1]])

    def micro_batch(self, step: int, index_in_step: int, micro_batches_per_step: int) -> MicroBatch:
        """The micro-batch of a global step; micro-step a of rank r has index_in_step a * world + r.

        Past the epoch's end it is a filler, the epoch's first micro-batch: every rank then makes a real
        forward pass, of weight 0.
        """
        if not 0 <= index_in_step < micro_batches_per_step:
            raise IndexError(f"micro-batch {index_in_step} of a step of {micro_batches_per_step}")
        if not 0 <= step < self.num_steps(micro_batches_per_step):
            raise IndexError(f"step {step} of an epoch of {self.num_steps(micro_batches_per_step)}")
        index = step * micro_batches_per_step + index_in_step
        if index < self.num_micro_batches:
            return self[index]
        return MicroBatch(self[0].rows, is_filler=True)

    def groups_before_step(self, step: int, micro_batches_per_step: int) -> int:
        """The epoch's groups consumed before a step begins: the position that a checkpoint keeps."""
        return int(self.groups_before[self._first_micro_batch(step, micro_batches_per_step)])

    def questions_before_step(self, step: int, micro_batches_per_step: int) -> int:
        """The epoch's questions that have counted before a step begins; the schedule counts them."""
        return int(self.row_offsets[self._first_micro_batch(step, micro_batches_per_step)])

    def step_at_groups(self, groups: int, micro_batches_per_step: int) -> int:
        """The step that begins after `groups` groups; raises `UserError` if none does."""
        index = int(np.searchsorted(self.groups_before, groups))
        is_boundary = index < len(self.groups_before) and self.groups_before[index] == groups
        at_end = index == self.num_micro_batches
        if not is_boundary or not (at_end or index % micro_batches_per_step == 0):
            raise UserError(
                f"the checkpoint stands after {groups} groups of the epoch, where no step of "
                f"{micro_batches_per_step} micro-batches begins; resume with the CSV file, training.batch_size, "
                "training.seed and world size x training.gradient_accumulation_steps of the saved run"
            )
        return self.num_steps(micro_batches_per_step) if at_end else index // micro_batches_per_step

    def _first_micro_batch(self, step: int, micro_batches_per_step: int) -> int:
        if not 0 <= step <= self.num_steps(micro_batches_per_step):
            raise IndexError(f"step {step} of an epoch of {self.num_steps(micro_batches_per_step)}")
        return min(step * micro_batches_per_step, self.num_micro_batches)


def micro_batches(groups: PaintingRows, order: np.ndarray, batch_size: int) -> EpochPlan:
    """Fills micro-batches greedily with the paintings in `order`, at most batch_size questions each.

    A painting's questions stay together; only one with more than batch_size is cut, into pieces of
    batch_size and a rest.
    """
    row_offsets, groups_before = [0], [0]
    in_batch = num_rows = num_groups = 0
    for painting in order:
        left = int(groups.offsets[painting + 1] - groups.offsets[painting])
        while left > 0:
            size = min(left, batch_size)
            if in_batch and in_batch + size > batch_size:
                row_offsets.append(num_rows)
                groups_before.append(num_groups)
                in_batch = 0
            in_batch, num_rows, num_groups, left = in_batch + size, num_rows + size, num_groups + 1, left - size
    if in_batch:
        row_offsets.append(num_rows)
        groups_before.append(num_groups)
    pieces = [groups.of(painting) for painting in order]
    return EpochPlan(
        rows=np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64),
        row_offsets=np.array(row_offsets, dtype=np.int64),
        groups_before=np.array(groups_before, dtype=np.int64),
    )


def plan_epoch(painting_of_row: np.ndarray, batch_size: int, seed: int, epoch: int) -> EpochPlan:
    """An epoch of training: a pure function of the table, batch_size, seed and epoch."""
    groups = rows_by_painting(painting_of_row)
    return micro_batches(groups, painting_order(groups.num_paintings, seed, epoch), batch_size)


def plan_evaluation(painting_of_row: np.ndarray, batch_size: int) -> EpochPlan:
    """All questions once, the paintings in the order of the table."""
    groups = rows_by_painting(painting_of_row)
    return micro_batches(groups, np.arange(groups.num_paintings), batch_size)


def training_micro_batches(
    plan: EpochPlan, first_step: int, accumulation: int, rank: int, world: int
) -> Iterator[MicroBatch]:
    """A rank's micro-batches from `first_step` to the epoch's end, `accumulation` a step, fillers included."""
    per_step = accumulation * world
    for step in range(first_step, plan.num_steps(per_step)):
        for micro_step in range(accumulation):
            yield plan.micro_batch(step, micro_step * world + rank, per_step)


def evaluation_micro_batches(plan: EpochPlan, rank: int, world: int) -> Iterator[MicroBatch]:
    """A rank's micro-batches of an evaluation: each question on one rank, once, with no fillers.

    Ranks may get different numbers of micro-batches, so no collective may run once a micro-batch.
    """
    return (plan[index] for index in range(rank, plan.num_micro_batches, world))
