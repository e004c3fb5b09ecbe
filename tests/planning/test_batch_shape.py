"""The largest micro-batch of a table, against all that its epochs make."""

import time

import numpy as np
import pytest

from artkv.datasets.order import plan_epoch
from artkv.planning.batch_shape import BatchShape, largest_batch, sequences


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 16, 1000])
def test_no_micro_batch_of_any_epoch_is_larger(batch_size: int, is_packed: bool) -> None:
    rng = np.random.default_rng(0)
    painting_of_row = np.repeat(np.arange(60), rng.integers(1, 7, 60))
    lengths = rng.integers(5, 40, len(painting_of_row))
    largest = largest_batch(painting_of_row, lengths, batch_size, is_packed)
    paintings, tokens = 0, 0
    for epoch in range(20):
        plan = plan_epoch(painting_of_row, batch_size, 7, epoch)
        for index in range(plan.num_micro_batches):
            rows = plan[index].rows
            paintings = max(paintings, len(set(painting_of_row[rows])))
            tokens = max(tokens, lengths[rows].sum())
            assert len(rows) <= largest.questions
    assert paintings <= largest.paintings <= largest.questions
    assert tokens <= largest.text_tokens * largest.questions
    assert largest.longest_text == lengths.max()
    assert is_packed or largest.text_tokens == lengths.max()


def test_one_question_is_a_batch_of_one() -> None:
    assert largest_batch(np.zeros(1, np.int64), np.array([9]), 8, False) == BatchShape(1, 1, 9, longest_text=9)


def test_very_many_paintings_are_laid_out_in_part_and_soon() -> None:
    """A part of 512 paintings, and the rest as that; whole, as it takes seconds for 1024."""
    whole = sequences.__wrapped__
    few, many = BatchShape(512, 2048, 20, True), BatchShape(1024, 4096, 20, True)
    expected = whole(few, 32, 64)
    found = sequences(many, 32, 64)
    assert found.rows == 2 * expected.rows
    assert (found.columns, found.predicting_columns) == (expected.columns, expected.predicting_columns)
    assert found.answer_tokens == 4096 * 19
    began = time.monotonic()
    sequences(BatchShape(65_536, 65_536, 32, True), 32, 2560)
    assert time.monotonic() - began < 20  # half a second; as a whole, hours
