"""Packs prompts to be answered as training questions are packed: equal beginnings are there once.

Beside what `artkv.datasets.packing` does, equal prompts on one painting become one: greedy answers to them are equal.
Letters in shapes are explained in `artkv.batch`.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import torch

from artkv.batch import PackedPrompts
from artkv.datasets.packing import PackingSettings, Piece, balance, layout_cost, prefix_tree

# What a layout is chosen for; ArtQuest's answers have three to six tokens.
_EXPECTED_ANSWER_TOKENS = 4

# Layouts that are tried: limits of a piece's columns in visual tokens, and numbers of rows.
_PIECE_LIMITS = (8, 16, 32)
_ROW_COUNTS = 24

Prompt = tuple[int, ...]


def pack_prompts(
    prompts: Sequence[Sequence[int]], painting_index: Sequence[int], pad_token_id: int, settings: PackingSettings
) -> PackedPrompts:
    """The packed form of prompts and of each one's painting in the batch; a pure function of them."""
    asked = [(painting, tuple(prompt)) for painting, prompt in zip(painting_index, prompts, strict=True)]
    distinct = sorted(set(asked))
    texts = [prompt for _, prompt in distinct]
    layout = _choose_layout(texts, [painting for painting, _ in distinct], settings)
    shape = (len(layout), max(sum(piece.num_columns for piece in row) for row in layout))
    num_visual = settings.num_visual_tokens
    token_ids = np.full(shape, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    subtree_end = np.tile(np.arange(1, shape[1] + 1), (shape[0], 1))  # padding sees itself: a softmax needs something
    last_columns = np.zeros((shape[0], _most_prompts(layout)), dtype=np.int64)
    is_asked = np.zeros(last_columns.shape, dtype=bool)
    piece_places, piece_painting = [], []
    place_of: dict[tuple[int, Prompt], int] = {}
    for row, pieces in enumerate(layout):
        start = slot = 0
        for piece in pieces:
            piece_places.append(row * shape[1] + start)
            piece_painting.append(piece.painting)
            text_start, end = start + num_visual, start + piece.num_columns
            tree = prefix_tree([list(texts[number]) for number in piece.questions])
            position_ids[row, start:text_start] = np.arange(num_visual)
            subtree_end[row, start:text_start] = end
            token_ids[row, text_start:end] = tree.token_ids
            position_ids[row, text_start:end] = num_visual + tree.depths
            subtree_end[row, text_start:end] = text_start + tree.ends
            for number, path in zip(piece.questions, tree.paths, strict=True):
                last_columns[row, slot], is_asked[row, slot] = text_start + path[-1], True
                place_of[distinct[number]] = row * last_columns.shape[1] + slot
                slot += 1
            start = end
    return PackedPrompts(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.from_numpy(position_ids),
        subtree_end=torch.from_numpy(subtree_end),
        piece_places=torch.tensor(piece_places, dtype=torch.int64),
        piece_painting=torch.tensor(piece_painting, dtype=torch.int64),
        last_columns=torch.from_numpy(last_columns),
        is_asked=torch.from_numpy(is_asked),
        places=torch.tensor([place_of[one] for one in asked], dtype=torch.int64),
    )


def _choose_layout(
    texts: Sequence[Prompt], painting_of_text: Sequence[int], settings: PackingSettings
) -> list[list[Piece]]:
    """The rows that cost least among some limits and numbers of rows; `choose_layout` tries all, for small batches.

    Texts are sorted within each painting.
    """
    best: list[list[Piece]] = []
    lowest = np.inf
    num_pieces = 0
    for limit in (settings.max_columns, *(n * settings.num_visual_tokens for n in reversed(_PIECE_LIMITS))):
        pieces: list[Piece] = []
        for painting, numbers in groupby(range(len(texts)), key=lambda number: painting_of_text[number]):
            pieces += _cut(texts, painting, list(numbers), min(limit, settings.max_columns), settings)
        if len(pieces) == num_pieces:
            continue  # the lower limit has cut nothing more
        num_pieces = len(pieces)
        longest = max(piece.num_columns for piece in pieces)
        for num_rows in _spread(len(pieces)):
            rows = balance(pieces, num_rows)
            num_columns = max(sum(piece.num_columns for piece in row) for row in rows)
            if num_columns > max(settings.max_columns, longest):
                continue
            answers = _EXPECTED_ANSWER_TOKENS * _most_prompts(rows)
            cost = layout_cost(num_rows, num_columns + answers, settings.hidden_size)
            if cost < lowest:
                best, lowest = rows, cost
    return best


def _cut(
    texts: Sequence[Prompt], painting: int, numbers: Sequence[int], limit: int, settings: PackingSettings
) -> Iterable[Piece]:
    """A painting's texts in pieces of at most `limit` columns, or of one text."""
    tree = prefix_tree([list(texts[number]) for number in numbers])
    # A text's nodes that no earlier one has are the last of its path.
    nodes_before = np.concatenate([[0], np.maximum.accumulate([path[-1] + 1 for path in tree.paths])])
    current: list[int] = []
    num_columns = settings.num_visual_tokens
    for number, new in zip(numbers, np.diff(nodes_before).tolist(), strict=True):
        if current and num_columns + new > limit:
            yield Piece(painting, tuple(current), num_columns, num_answers=0)
            current, num_columns, new = [], settings.num_visual_tokens, len(texts[number])
        current.append(number)
        num_columns += new
    yield Piece(painting, tuple(current), num_columns, num_answers=0)


def _most_prompts(layout: Sequence[Sequence[Piece]]) -> int:
    """In one row."""
    return max(sum(len(piece.questions) for piece in row) for row in layout)


def _spread(most: int) -> list[int]:
    """Numbers of rows from 1 to `most`: each, or as many evenly spread."""
    return sorted({round(number) for number in np.linspace(1, most, min(most, _ROW_COUNTS))})
