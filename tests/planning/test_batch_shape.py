"""The largest micro-batch of a table, against all that its epochs make."""

import time

import numpy as np
import pytest

from artkv.datasets.order import plan_epoch
from artkv.planning.batch_shape import BatchShape, largest_batch, sequences, with_shared_beginnings


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


@pytest.mark.parametrize(("paintings", "questions", "tokens"), [(8, 48, 1152), (32, 192, 4480), (1, 8, 160)])
def test_shared_beginnings_are_not_counted_for_each_question(paintings: int, questions: int, tokens: int) -> None:
    """Tokens of a run's largest batches: the bound is a quarter and more above them, this a tenth at most."""
    bound = BatchShape(paintings, questions, 28, True, longest_text=31)
    found = with_shared_beginnings(bound, tokens, num_visual_tokens=32)
    read = sequences(found, 32, 2560)
    assert tokens <= read.rows * read.columns <= 1.1 * tokens
    loose = sequences(bound, 32, 2560)
    assert loose.rows * loose.columns > 1.2 * tokens
    assert (found.longest_text, found.questions, found.paintings) == (31, questions, paintings)


def test_texts_are_never_taken_to_be_longer_than_they_are() -> None:
    assert with_shared_beginnings(BatchShape(2, 4, 10, True), 10_000, 32).text_tokens == 10
    assert with_shared_beginnings(BatchShape(2, 4, 10, True), 1, 32).text_tokens == 2
