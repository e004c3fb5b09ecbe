"""The bound on a packed micro-batch's tokens against what packing makes of all micro-batches of many epochs."""

import numpy as np
import pytest

from artkv.datasets.order import plan_epoch
from artkv.datasets.packing import PackingSettings, cut_into_pieces, num_tokens
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.planning.batch_shape import largest_batch, sequences
from artkv.planning.shared_beginnings import (
    LargestBatch,
    largest_packed_batch,
    tokens_of_rows,
    with_shared_beginnings,
)

VISUAL = 4


def table_of(texts: list[list[int]]) -> TokenizedTable:
    """Rows of BOS (1), the given tokens and a newline (2); the last three tokens are the answer."""
    rows = [[1, *text, 2] for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenizedTable(np.concatenate(rows).astype(np.int32), offsets, offsets[1:] - 3, 0)


def random_table(seed: int, outliers: int = 0) -> tuple[TokenizedTable, np.ndarray]:
    """Paintings of one to nine questions that begin alike for a while; some have texts of a hundred tokens."""
    rng = np.random.default_rng(seed)
    painting_of_row = np.repeat(np.arange(80), rng.integers(1, 10, 80))
    texts = []
    for painting in painting_of_row:
        words = rng.integers(0, 3, rng.integers(6, 20)) + 10
        texts.append([5, 6, 7, *words, *(rng.integers(20, 99, 100) if painting < outliers else [])])
    shuffled = rng.permutation(len(texts))
    return table_of([texts[row] for row in shuffled]), painting_of_row[shuffled]


def tree_tokens(tokenized: TokenizedTable, painting_of_row: np.ndarray, rows: list[int]) -> int:
    """Nodes of the rows' trees and visual tokens, by sets of prefixes."""
    nodes = {
        (int(painting_of_row[row]), tuple(ids[: end + 1]))
        for row in rows
        for ids in [tokenized.for_training(row)[0][:-1]]
        for end in range(len(ids))
    }
    return len(nodes) + VISUAL * len({painting for painting, _ in nodes})


@pytest.mark.parametrize("batch_size", [1, 4, 12, 48, 1000])
@pytest.mark.parametrize("outliers", [0, 5])
def test_no_micro_batch_of_any_epoch_has_more_tokens(batch_size: int, outliers: int) -> None:
    tokenized, painting_of_row = random_table(batch_size, outliers)
    settings = PackingSettings(VISUAL, 64)
    bound = largest_packed_batch(tokenized, painting_of_row, batch_size, VISUAL)
    batch = largest_batch(painting_of_row, tokenized.lengths, batch_size, True)
    found = with_shared_beginnings(batch, bound, VISUAL)
    planned = sequences(found, VISUAL, 64)
    most = 0
    for epoch in range(12):
        plan = plan_epoch(painting_of_row, batch_size, 7, epoch)
        for index in range(plan.num_micro_batches):
            rows = [int(row) for row in plan[index].rows]
            needed = tree_tokens(tokenized, painting_of_row, rows)
            most = max(most, needed)
            if epoch == 0:  # packing counts the same
                numbers = np.unique(painting_of_row[rows], return_inverse=True)[1].tolist()
                pieces = cut_into_pieces([tokenized.for_training(row) for row in rows], numbers, settings)
                assert num_tokens(pieces) == needed
    assert most <= bound.tokens
    assert most <= planned.rows * planned.columns
    assert found.text_tokens <= batch.text_tokens


def test_questions_that_begin_alike_are_not_counted_as_if_they_did_not() -> None:
    """Six questions a painting that part after 12 of 20 tokens, as with templates: a tenth above what is needed."""
    texts = [[*range(10, 22), *range(30 + 8 * question, 38 + 8 * question)] for question in range(6)] * 100
    tokenized, painting_of_row = table_of(texts), np.repeat(np.arange(100), 6)
    bound = largest_packed_batch(tokenized, painting_of_row, 48, VISUAL)
    needed = 8 * (VISUAL + 1 + 12 + 6 * 8)
    assert bound == LargestBatch(needed, 8)
    loose = largest_batch(painting_of_row, tokenized.lengths, 48, True)
    planned = sequences(with_shared_beginnings(loose, bound, VISUAL), VISUAL, 64)
    before = sequences(loose, VISUAL, 64)
    assert needed <= planned.rows * planned.columns <= 1.15 * needed
    assert before.rows * before.columns > 1.8 * needed


def test_rows_of_a_tree_add_up_to_its_nodes() -> None:
    texts = [[10, 11, 12], [10, 11, 13], [14], [10, 11, 12, 15]]
    own = tokens_of_rows(table_of(texts), np.array([0, 0, 0, 0]))
    assert own.sum() == len(
        {(1,), (1, 10), (1, 10, 11), (1, 10, 11, 12), (1, 10, 11, 13), (1, 14), (1, 10, 11, 12, 15)}
    )
    apart = tokens_of_rows(table_of(texts), np.arange(4))
    assert apart.tolist() == [4, 4, 2, 5]


def test_a_very_large_table_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artkv.planning.shared_beginnings._MOST_ROWS", 3)
    assert tokens_of_rows(table_of([[10]] * 4), np.zeros(4, np.int64)).tolist() == [2] * 4
