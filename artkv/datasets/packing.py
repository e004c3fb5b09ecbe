"""Packs a painting's questions into one sequence in which equal beginnings are there once.

Under causal attention a token's hidden state depends on the tokens before it alone. So questions on one painting
share their visual tokens, and questions that begin alike ("Question: What is the ...") share that beginning too: their
texts form a tree of token prefixes. Laid out in depth-first order, a token's ancestors are the columns j <= i with
i < subtree_end[j], so one integer a token says who sees whom.

An answer's last token, the newline, predicts nothing and is left out of the input.

Letters in shapes are explained in `artkv.batch`.
"""

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from artkv.batch import PackedQuestions
from artkv.datasets.tokenization import IGNORED_LABEL, EncodedQuestion

# The mask holds two bytes (bf16) for each column of its row a token, so this bounds it to 8 KB a token.
MAX_COLUMNS = 4096

# Splitting repeats visual tokens; more pieces than these never paid where it was tried (docs/packing.md).
_MAX_SPLITS = 4


@dataclass(frozen=True)
class PackingSettings:
    """What packing needs to know of the model.

    num_visual_tokens: of each painting. hidden_size: the language model's, which weighs attention against products.
    max_columns: of a row, unless a single question takes more.
    """

    num_visual_tokens: int
    hidden_size: int
    max_columns: int = MAX_COLUMNS


class Piece(NamedTuple):
    """Questions on one painting that share their visual tokens.

    questions: their numbers, sorted by text. num_columns: visual tokens and tree.
    """

    painting: int
    questions: tuple[int, ...]
    num_columns: int


class PrefixTree(NamedTuple):
    """Token sequences with each common beginning once, in depth-first order.

    token_ids, depths: (nodes,) int64. ends: (nodes,) int64, one beyond the last node of each subtree.
    paths: for each sequence the node of each of its tokens.
    """

    token_ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    paths: list[np.ndarray]


def pack_questions(
    encoded: Sequence[EncodedQuestion],
    painting_index: Sequence[int],
    weight: float,
    pad_token_id: int,
    settings: PackingSettings,
) -> PackedQuestions:
    """The packed form of what `collate_questions` makes of the same arguments; a pure function of them."""
    texts = [_text_before_last_label(*one) for one in encoded]
    layout = choose_layout(texts, painting_index, settings)
    shape = (len(layout), max(sum(piece.num_columns for piece in row) for row in layout))
    num_visual = settings.num_visual_tokens
    token_ids = np.full(shape, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    subtree_end = np.tile(np.arange(1, shape[1] + 1), (shape[0], 1))  # padding sees itself: a softmax needs something
    piece_places, piece_painting = [], []
    answers: list[tuple[int, int, int]] = []  # row, column that predicts, id
    for row, pieces in enumerate(layout):
        start = 0
        for piece in pieces:
            piece_places.append(row * shape[1] + start)
            piece_painting.append(piece.painting)
            text_start, end = start + num_visual, start + piece.num_columns
            position_ids[row, start:text_start] = np.arange(num_visual)
            subtree_end[row, start:text_start] = end
            tree = prefix_tree([texts[question] for question in piece.questions])
            token_ids[row, text_start:end] = tree.token_ids
            position_ids[row, text_start:end] = num_visual + tree.depths
            subtree_end[row, text_start:end] = text_start + tree.ends
            for question, path in zip(piece.questions, tree.paths, strict=True):
                # The last visual token predicts text token 0, text token t predicts t + 1.
                predicting = [text_start - 1, *(text_start + path)]
                for label, column in zip(encoded[question][1], predicting, strict=False):
                    if label != IGNORED_LABEL:
                        answers.append((row, int(column), label))
            start = end
    answer_columns, answer_places = _columns_of_answers(answers, shape[0])
    return PackedQuestions(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.from_numpy(position_ids),
        subtree_end=torch.from_numpy(subtree_end),
        piece_places=torch.tensor(piece_places, dtype=torch.int64),
        piece_painting=torch.tensor(piece_painting, dtype=torch.int64),
        answer_columns=torch.from_numpy(answer_columns),
        answer_places=torch.from_numpy(answer_places),
        answer_ids=torch.tensor([label for _, _, label in answers], dtype=torch.int64),
        answer_weight=torch.full((len(answers),), weight, dtype=torch.float32),
    )


def prefix_tree(sequences: Sequence[list[int]]) -> PrefixTree:
    """The tree of `sequences`, which are sorted: then those that begin alike stand together."""
    token_ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    paths: list[np.ndarray] = []
    path: list[int] = []
    before: list[int] = []
    for sequence in sequences:
        shared = _shared_length(before, sequence)
        for node in path[shared:]:
            ends[node] = len(token_ids)
        del path[shared:]
        for token in sequence[shared:]:
            depths.append(len(path))
            path.append(len(token_ids))
            token_ids.append(token)
            ends.append(-1)
        paths.append(np.array(path, dtype=np.int64))
        before = sequence
    for node in path:
        ends[node] = len(token_ids)
    return PrefixTree(np.array(token_ids, np.int64), np.array(depths, np.int64), np.array(ends, np.int64), paths)


def choose_layout(
    texts: Sequence[list[int]], painting_index: Sequence[int], settings: PackingSettings
) -> list[list[Piece]]:
    """The rows of pieces that cost least, by `layout_cost`, among several splits and all numbers of rows."""
    groups: list[Sequence[int]] = [
        sorted((n for n, place in enumerate(painting_index) if place == painting), key=lambda n: texts[n])
        for painting in range(max(painting_index) + 1)
    ]
    num_visual = settings.num_visual_tokens
    whole = _split(texts, groups, settings.max_columns, num_visual)
    longest = max(whole, key=lambda piece: piece.num_columns)
    best: list[list[Piece]] = []
    lowest = np.inf
    for splits in range(1, _MAX_SPLITS + 1):
        pieces = whole if splits == 1 else _split(texts, groups, _limit(texts, longest, splits, num_visual), num_visual)
        for num_rows in range(1, len(pieces) + 1):
            rows = balance(pieces, num_rows)
            num_columns = max(sum(piece.num_columns for piece in row) for row in rows)
            if num_columns > max(settings.max_columns, longest.num_columns):
                continue
            cost = layout_cost(num_rows, num_columns, settings.hidden_size)
            if cost < lowest:
                best, lowest = rows, cost
    return best


def layout_cost(num_rows: int, num_columns: int, hidden_size: int) -> float:
    """What rows of so many columns cost, in products of one token with a block's matrices.

    A block has 12 D^2 elements, 24 D^2 FLOP a token; scores and their products with values take 4 L D more.
    """
    return num_rows * num_columns * (1 + num_columns / (6 * hidden_size))


def balance(pieces: Sequence[Piece], num_rows: int) -> list[list[Piece]]:
    """Distributes pieces over rows: the longest first, each to the row that is shortest so far."""
    rows: list[list[Piece]] = [[] for _ in range(num_rows)]
    loads = [(0, row) for row in range(num_rows)]
    for piece in sorted(pieces, key=lambda piece: -piece.num_columns):
        load, row = loads[0]
        rows[row].append(piece)
        heapq.heapreplace(loads, (load + piece.num_columns, row))
    return rows


def _split(
    texts: Sequence[list[int]], groups: Sequence[Sequence[int]], max_columns: int, num_visual: int
) -> list[Piece]:
    """Cuts each painting's sorted questions into pieces of at most `max_columns`, or of one question."""
    pieces = []
    for painting, questions in enumerate(groups):
        current: list[int] = []
        num_columns = num_visual
        for question in questions:
            new = len(texts[question]) - (_shared_length(texts[current[-1]], texts[question]) if current else 0)
            if current and num_columns + new > max_columns:
                pieces.append(Piece(painting, tuple(current), num_columns))
                current, num_columns, new = [], num_visual, len(texts[question])
            current.append(question)
            num_columns += new
        pieces.append(Piece(painting, tuple(current), num_columns))
    return pieces


def _limit(texts: Sequence[list[int]], longest: Piece, splits: int, num_visual: int) -> int:
    """The fewest columns that cut the longest piece into no more than `splits`, so that they come out even."""
    limits = range(num_visual, longest.num_columns)
    return num_visual + bisect_left(
        limits, True, key=lambda limit: len(_split(texts, [longest.questions], limit, num_visual)) <= splits
    )


def _columns_of_answers(answers: Sequence[tuple[int, int, int]], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`answer_columns` and `answer_places` of `PackedQuestions`; one column may predict several tokens."""
    columns = [sorted({column for answer_row, column, _ in answers if answer_row == row}) for row in range(num_rows)]
    most = max(len(of_row) for of_row in columns)
    answer_columns = np.zeros((num_rows, most), dtype=np.int64)
    rank: dict[tuple[int, int], int] = {}
    for row, of_row in enumerate(columns):
        answer_columns[row, : len(of_row)] = of_row
        rank |= {(row, column): row * most + n for n, column in enumerate(of_row)}
    return answer_columns, np.array([rank[row, column] for row, column, _ in answers], dtype=np.int64)


def _text_before_last_label(input_ids: list[int], labels: list[int]) -> list[int]:
    """The tokens that predict something, or are read by one that does."""
    last = max((n for n, label in enumerate(labels) if label != IGNORED_LABEL), default=0)
    return input_ids[:last]


def _shared_length(one: list[int], other: list[int]) -> int:
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
