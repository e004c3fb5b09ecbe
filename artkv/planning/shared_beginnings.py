"""How many tokens OPT reads of a table's largest packed micro-batch, whatever the order of an epoch.

A painting's questions form a tree of token prefixes (see `artkv.datasets.packing`), so equal beginnings count once.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from artkv.datasets.packing import MOST_PADDING
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.planning.batch_shape import BatchShape

# Rows of a painting are sorted by so many first tokens, and compared with their neighbours.
_SORTED_BY = 12
# Above it, sorting would take longer than a second of each start: there all but BOS counts for each question.
_MOST_ROWS = 250_000


class LargestBatch(NamedTuple):
    """What no micro-batch exceeds: tokens, visual ones included, and of how many paintings these are."""

    tokens: int
    paintings: int


def tokens_of_rows(tokenized: TokenizedTable, painting_of_row: np.ndarray) -> np.ndarray:
    """(rows,) int64, such that no painting's tree has more nodes than its rows have here together.

    A row's last token is not read. Equal beginnings that are overlooked count twice.
    """
    lengths = np.maximum(tokenized.lengths - 1, 0)
    if len(lengths) > _MOST_ROWS:
        return lengths
    columns = np.arange(_SORTED_BY)
    places = np.minimum(tokenized.offsets[:-1, None] + columns, max(0, len(tokenized.token_ids) - 1))
    first = np.where(columns < lengths[:, None], tokenized.token_ids[places], -1)
    order = np.lexsort((*first.T[::-1], painting_of_row))
    before, after = order[:-1], order[1:]
    number = np.flatnonzero(painting_of_row[before] == painting_of_row[after])
    common = np.zeros(len(lengths), dtype=np.int64)
    column = 0
    while len(number):
        one, other = before[number], after[number]
        number = number[(lengths[one] > column) & (lengths[other] > column)]
        one, other = tokenized.offsets[before[number]] + column, tokenized.offsets[after[number]] + column
        number = number[tokenized.token_ids[one] == tokenized.token_ids[other]]
        common[after[number]] += 1
        column += 1
    own: np.ndarray = lengths - common
    return own


def largest_packed_batch(
    tokenized: TokenizedTable, painting_of_row: np.ndarray, batch_size: int, num_visual_tokens: int
) -> LargestBatch:
    """The paintings with most tokens a question, as many as hold `batch_size` questions, one of them in part."""
    own = tokens_of_rows(tokenized, painting_of_row)
    counts = np.bincount(painting_of_row)
    tokens = np.bincount(painting_of_row, weights=own) + num_visual_tokens
    is_whole = counts <= batch_size
    pieces = list(zip(counts[is_whole].tolist(), tokens[is_whole].tolist(), strict=True))
    # A painting of more questions than a micro-batch holds is cut, and its pieces may be any of them.
    for painting in np.flatnonzero(~is_whole):
        longest = np.sort(np.maximum(tokenized.lengths[painting_of_row == painting] - 1, 0))[::-1]
        sizes = {batch_size, len(longest) % batch_size} - {0}
        pieces += [(size, float(longest[:size].sum()) + num_visual_tokens) for size in sizes]
    left, read, paintings = min(batch_size, len(painting_of_row)), 0.0, 0
    for questions, of_piece in sorted(pieces, key=lambda piece: piece[1] / piece[0], reverse=True):
        share = min(1.0, left / questions)
        read, paintings, left = read + share * of_piece, paintings + 1, left - min(left, questions)
        if left == 0:
            break
    return LargestBatch(math.ceil(read), paintings)


def with_shared_beginnings(batch: BatchShape, largest: LargestBatch, num_visual_tokens: int) -> BatchShape:
    """The batch, whose questions have nothing but BOS in common, with texts as long as makes it `largest`, padded."""
    own_tokens = largest.tokens * (1 + MOST_PADDING) - largest.paintings * (num_visual_tokens + 1)
    # And a painting's BOS, and the last token, which is not read.
    text_tokens = 2 + max(0, math.ceil(own_tokens / batch.questions))
    return replace(batch, text_tokens=min(batch.text_tokens, text_tokens))
