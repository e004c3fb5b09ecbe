"""The few shapes that a run's packed batches are padded to.

What depends on a shape is made once for each: plans of attention kernels, memory of the allocator's caches, CUDA
graphs. Left alone, nearly every batch has a shape of its own.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from artkv.datasets.order import EpochPlan
from artkv.datasets.packing import (
    PackedShape,
    PackingSettings,
    Piece,
    balance,
    cut_into_pieces,
    num_tokens,
    rank_of,
    shape_of,
)
from artkv.datasets.question_set import QuestionSet

# An epoch has at most a dozen: these, and what the batches have that none of them holds.
MOST_SHAPES = 10
# Batches that shapes are chosen by, spread over the epoch: enough for its quantiles, few enough to take no time.
SAMPLED_BATCHES = 512
# Masks whose rows are aligned to so many elements need no copy, and products like it too.
_COLUMN_MULTIPLE = 8
_ANSWER_MULTIPLE = 16
# Rows beyond the best number that are tried: with more of them only padding grows.
_ROWS_WITHOUT_GAIN = 4
# Room for batches that the sample has not seen: of later epochs, or beyond the sample.
_MARGIN = 1.05


def plan_shapes(questions: QuestionSet, plan: EpochPlan, settings: PackingSettings) -> tuple[PackedShape, ...]:
    """The shapes for batches of an epoch planned so; a pure function, alike on all ranks and after a resume."""
    numbers = np.unique(np.linspace(0, plan.num_micro_batches - 1, SAMPLED_BATCHES).round().astype(int))
    return choose_shapes([_pieces(questions, plan[int(number)].rows, settings) for number in numbers], settings)


def choose_shapes(batches: Sequence[Sequence[Piece]], settings: PackingSettings) -> tuple[PackedShape, ...]:
    """At most `MOST_SHAPES` shapes that hold all `batches` with least padding.

    Batches are grouped by their tokens, such that the tokens missing to the largest of each group are fewest. A group's
    number of rows is the best by `rank_of`.
    """
    by_size = sorted(batches, key=num_tokens)
    groups = _group([num_tokens(batch) for batch in by_size], MOST_SHAPES)
    shapes = [_shape_for(by_size[first:end], settings) for first, end in groups]
    return tuple(sorted(set(shapes)))


def _pieces(questions: QuestionSet, rows: Iterable[int], settings: PackingSettings) -> list[Piece]:
    """The pieces of a micro-batch's rows."""
    numbers = [int(row) for row in rows]
    _, painting_index = questions.distinct_paintings(numbers)
    return cut_into_pieces([questions.tokenized.for_training(row) for row in numbers], painting_index, settings)


def _group(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Cuts sorted sizes into at most `most` runs, [first, end), with the least sum of (largest of the run - size).

    Dynamic programming over the runs' ends, exact.
    """
    values = np.asarray(sizes, dtype=np.int64)
    count = len(values)
    before = np.concatenate([[0], np.cumsum(values)])
    first, end = np.arange(count)[:, None], np.arange(1, count + 1)[None, :]
    padding = np.where(first < end, values[None, :] * (end - first) - (before[end] - before[first]), np.inf)
    least = padding[0]  # of the sizes up to each end in one run
    choices: list[np.ndarray] = []
    for _ in range(min(most, count) - 1):
        # A further run from `first` on, behind the best of what lies before it.
        total = np.concatenate([[np.inf], least[:-1]])[:, None] + padding
        choice = total.argmin(axis=0)
        with_more = total[choice, np.arange(count)]
        choices.append(np.where(with_more < least, choice, -1))
        least = np.minimum(least, with_more)
    runs, last = [], count
    for choice in reversed(choices):
        if last > 0 and choice[last - 1] > 0:
            runs.append((int(choice[last - 1]), last))
            last = int(choice[last - 1])
    return [(0, last), *reversed(runs)]


def _shape_for(batches: Sequence[Sequence[Piece]], settings: PackingSettings) -> PackedShape:
    """The cheapest shape that holds all of these batches, with some room."""
    longest = max(piece.num_columns for batch in batches for piece in batch)
    mean_tokens = sum(num_tokens(batch) for batch in batches) / len(batches)
    best, lowest = None, (True, np.inf)
    for num_rows in range(1, max(len(batch) for batch in batches) + 1):
        needed = [shape_of(balance(batch, num_rows)) for batch in batches]
        columns = _round_up(max(shape.columns for shape in needed), _COLUMN_MULTIPLE)
        if columns > max(settings.max_columns, _round_up(longest, _COLUMN_MULTIPLE)):
            continue
        answer_columns = _round_up(max(shape.answer_columns for shape in needed) * _MARGIN, _ANSWER_MULTIPLE)
        answers = _round_up(max(shape.answers for shape in needed) * _MARGIN, _ANSWER_MULTIPLE)
        shape = PackedShape(num_rows, columns, answer_columns, answers)
        rank = rank_of(shape, mean_tokens, settings)
        if best is None or rank < lowest:
            best, lowest = shape, rank
        elif best is not None and num_rows > best.rows + _ROWS_WITHOUT_GAIN:
            break
    assert best is not None, "one piece a row always fits"
    return best


def _round_up(number: float, multiple: int) -> int:
    return -(-int(np.ceil(number)) // multiple) * multiple
