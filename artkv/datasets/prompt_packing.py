"""Packs prompts to be answered as training questions are packed: equal beginnings are there once.

Beside what `artkv.datasets.packing` does, equal prompts on one painting become one: greedy answers to them are equal.
Letters in shapes are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from artkv.batch import PackedPrompts
from artkv.datasets.packing import PackingSettings, Piece, balance, cut_group, lay_out_rows, layout_cost

# What a layout is chosen for; ArtQuest's answers have three to six tokens.
_EXPECTED_ANSWER_TOKENS = 4

# Layouts that are tried: limits of a piece's columns in visual tokens, and numbers of rows.
_PIECE_LIMITS = (8, 16, 32)
_ROW_COUNTS = 24

Prompt = tuple[int, ...]


def pack_prompts(
    prompts: Sequence[Sequence[int]],
    painting_index: Sequence[int],
    pad_token_id: int,
    settings: PackingSettings,
    num_seen: Sequence[int] | None = None,
) -> PackedPrompts:
    """The packed form of prompts and of each one's painting in the batch; a pure function of them.

    num_seen: see `lay_out_rows`.
    """
    asked = [(painting, tuple(prompt)) for painting, prompt in zip(painting_index, prompts, strict=True)]
    distinct = sorted(set(asked))
    texts = [prompt for _, prompt in distinct]
    layout = layout_of_texts(texts, [painting for painting, _ in distinct], settings, _EXPECTED_ANSWER_TOKENS)
    num_columns = max(sum(piece.num_columns for piece in row) for row in layout)
    rows = lay_out_rows(layout, num_columns, texts, pad_token_id, settings, num_seen)
    last_columns = np.zeros((len(layout), _most_prompts(layout)), dtype=np.int64)
    num_asked = [0] * len(layout)
    place_of: dict[tuple[int, Prompt], int] = {}
    for row, piece, text_start, paths in rows.placed:
        for number, path in zip(piece.questions, paths, strict=True):
            slot = num_asked[row]
            last_columns[row, slot] = text_start + path[-1]
            place_of[distinct[number]] = row * last_columns.shape[1] + slot
            num_asked[row] += 1
    is_asked = np.arange(last_columns.shape[1]) < np.array(num_asked)[:, None]
    return PackedPrompts(
        **rows.tensors,
        last_columns=torch.from_numpy(last_columns),
        is_asked=torch.from_numpy(is_asked),
        places=torch.tensor([place_of[one] for one in asked], dtype=torch.int64),
    )


def layout_of_texts(
    texts: Sequence[Prompt], painting_of_text: Sequence[int], settings: PackingSettings, new_tokens: int = 0
) -> list[list[Piece]]:
    """The rows that cost least among some limits and numbers of rows; `choose_layout` tries all, for small batches.

    Texts are sorted by painting, and within each painting. new_tokens: of each, that will be added to its row.
    """
    best: list[list[Piece]] = []
    lowest = np.inf
    num_pieces = 0
    no_answers = [0] * len(texts)
    for limit in (settings.max_columns, *(n * settings.num_visual_tokens for n in reversed(_PIECE_LIMITS))):
        pieces: list[Piece] = []
        for painting, numbers in groupby(range(len(texts)), key=lambda number: painting_of_text[number]):
            columns = min(limit, settings.max_columns)
            pieces += cut_group(texts, list(numbers), columns, settings.num_visual_tokens, painting, no_answers)
        if len(pieces) == num_pieces:
            continue  # the lower limit has cut nothing more
        num_pieces = len(pieces)
        longest = max(piece.num_columns for piece in pieces)
        for num_rows in _spread(len(pieces)):
            rows = balance(pieces, num_rows)
            num_columns = max(sum(piece.num_columns for piece in row) for row in rows)
            if num_columns > max(settings.max_columns, longest):
                continue
            added = new_tokens * _most_prompts(rows)
            cost = layout_cost(num_rows, num_columns + added, settings.hidden_size)
            if cost < lowest:
                best, lowest = rows, cost
    return best


def _most_prompts(layout: Sequence[Sequence[Piece]]) -> int:
    """In one row."""
    return max(sum(len(piece.questions) for piece in row) for row in layout)


def _spread(most: int) -> list[int]:
    """Numbers of rows from 1 to `most`: each, or as many evenly spread."""
    return sorted({round(number) for number in np.linspace(1, most, min(most, _ROW_COUNTS))})
