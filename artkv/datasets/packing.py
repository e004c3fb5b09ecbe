"""Packs a painting's questions into one sequence in which equal beginnings are there once.

Under causal attention a token's hidden state depends on the tokens before it alone. So questions on one painting
share their visual tokens, and questions that begin alike ("Question: What is the ...") share that beginning too: their
texts form a tree of token prefixes. Laid out in depth-first order, a token's ancestors are the columns j <= i with
i < subtree_end[j], so one integer a token says who sees whom.

An answer's last token, the newline, predicts nothing and is left out of the input.

Letters in shapes are explained in `artkv.batch`.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from artkv.batch import PackedQuestions
from artkv.datasets.tokenization import IGNORED_LABEL, EncodedQuestion

# The mask holds two bytes (bf16) for each column of its row a token, so this bounds it to 8 KB a token.
MAX_COLUMNS = 4096

# On an H100, forward and backward of OPT-2.7b's blocks in bf16, with rows of 544 columns: 49 ms of attention with a
# mask to 59 ms of products.
_ATTENTION_SLOWNESS = 23

# Of tokens: more is computed only where no other shape will do.
MOST_PADDING = 0.08

# What a batch that fits none of the planned shapes is rounded up to, so that even these are few.
_UNPLANNED_MULTIPLE = 64


class PackedShape(NamedTuple):
    """The sizes of a packed batch: R, L, C and A of `artkv.batch`."""

    rows: int
    columns: int
    answer_columns: int
    answers: int

    def holds(self, other: "PackedShape") -> bool:
        """Whether a batch of the other shape, with as many rows, can be padded to this one."""
        return self.rows == other.rows and all(mine >= its for mine, its in zip(self, other, strict=True))


@dataclass(frozen=True)
class PackingSettings:
    """What packing needs to know of the model, and the shapes that it may give to batches.

    num_visual_tokens: most of a painting. hidden_size: the language model's, which weighs attention against products.
    max_columns: of a row, unless a single question takes more. shapes: what batches are padded to; see
    `artkv.datasets.packed_shapes`. Empty: each batch is as small as it can be.
    """

    num_visual_tokens: int
    hidden_size: int
    max_columns: int = MAX_COLUMNS
    shapes: tuple[PackedShape, ...] = ()


class Piece(NamedTuple):
    """Questions on one painting that share their visual tokens.

    questions: their numbers, sorted by text. num_columns: visual tokens and tree. num_answers: answer tokens.
    """

    painting: int
    questions: tuple[int, ...]
    num_columns: int
    num_answers: int


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
    layout, padded = _shaped_layout(cut_into_pieces(encoded, painting_index, settings), settings)
    texts = [_text_before_last_label(*one) for one in encoded]
    rows = lay_out_rows(layout, padded.columns, texts, pad_token_id, settings)
    answers: list[tuple[int, int, int]] = []  # row, column that predicts, id
    for row, piece, text_start, paths in rows.placed:
        for question, path in zip(piece.questions, paths, strict=True):
            # The last visual token predicts text token 0, text token t predicts t + 1.
            predicting = [text_start - 1, *(text_start + path)]
            for label, column in zip(encoded[question][1], predicting, strict=False):
                if label != IGNORED_LABEL:
                    answers.append((row, int(column), label))
    answer_columns, answer_places = columns_of_answers(answers, padded.rows, padded.answer_columns)
    unused = padded.answers - len(answers)  # of weight 0
    return PackedQuestions(
        **rows.tensors,
        answer_columns=torch.from_numpy(answer_columns),
        answer_places=torch.from_numpy(np.pad(answer_places, (0, unused))),
        answer_ids=torch.tensor([label for _, _, label in answers] + [0] * unused, dtype=torch.int64),
        answer_weight=torch.tensor([weight] * len(answers) + [0.0] * unused, dtype=torch.float32),
    )


class PlacedPiece(NamedTuple):
    """A piece in its row. text_start: its first text column. paths: of each question, its tokens' nodes in the tree."""

    row: int
    piece: Piece
    text_start: int
    paths: list[np.ndarray]


class LaidOutRows(NamedTuple):
    """tensors: the fields of `artkv.batch.PackedRows`. placed: the pieces, row after row."""

    tensors: dict[str, torch.Tensor]
    placed: list[PlacedPiece]


def lay_out_rows(
    layout: Sequence[Sequence[Piece]],
    num_columns: int,
    texts: Sequence[Sequence[int]],
    pad_token_id: int,
    settings: PackingSettings,
    num_seen: Sequence[int] | None = None,
) -> LaidOutRows:
    """Writes each piece's visual tokens and its tree of `texts` into its row, padded to `num_columns`.

    num_seen: how many of its visual tokens each painting of the batch has; None: all. Nothing sees the columns of the
    others, and positions go on as if they were not there.
    """
    shape, num_visual = (len(layout), num_columns), settings.num_visual_tokens
    token_ids = np.full(shape, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    subtree_end = np.tile(np.arange(1, num_columns + 1), (len(layout), 1))  # padding sees itself: softmax needs some
    placed = []
    piece_places = []
    for row, pieces in enumerate(layout):
        start = 0
        for piece in pieces:
            piece_places.append(row * num_columns + start)
            text_start, end = start + num_visual, start + piece.num_columns
            seen = num_visual if num_seen is None else num_seen[piece.painting]
            tree = prefix_tree([list(texts[question]) for question in piece.questions])
            position_ids[row, start : start + seen] = np.arange(seen)
            subtree_end[row, start : start + seen] = end
            token_ids[row, text_start:end] = tree.token_ids
            position_ids[row, text_start:end] = seen + tree.depths
            subtree_end[row, text_start:end] = text_start + tree.ends
            placed.append(PlacedPiece(row, piece, text_start, tree.paths))
            start = end
    tensors = {
        "token_ids": torch.from_numpy(token_ids),
        "position_ids": torch.from_numpy(position_ids),
        "subtree_end": torch.from_numpy(subtree_end),
        "piece_places": torch.tensor(piece_places, dtype=torch.int64),
        "piece_painting": torch.tensor([one.piece.painting for one in placed], dtype=torch.int64),
    }
    return LaidOutRows(tensors, placed)


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


def cut_into_pieces(
    encoded: Sequence[EncodedQuestion], painting_index: Sequence[int], settings: PackingSettings
) -> list[Piece]:
    """The questions of each painting, in pieces of at most `settings.max_columns` or of one question."""
    texts = [_text_before_last_label(*one) for one in encoded]
    num_answers = [sum(label != IGNORED_LABEL for label in labels) for _, labels in encoded]
    pieces = []
    for painting in range(max(painting_index) + 1):
        questions = sorted((n for n, place in enumerate(painting_index) if place == painting), key=lambda n: texts[n])
        pieces += cut_group(texts, questions, settings.max_columns, settings.num_visual_tokens, painting, num_answers)
    return pieces


def cut_group(
    texts: Sequence[Sequence[int]],
    questions: Sequence[int],
    max_columns: int,
    num_visual: int,
    painting: int,
    num_answers: Sequence[int],
) -> list[Piece]:
    """A painting's questions, sorted by text, in pieces of at most `max_columns`, or of one question.

    num_answers: answer tokens of each of `texts`.
    """
    pieces = []
    first, num_columns = 0, num_visual  # of the piece that is being filled

    def add(end: int) -> None:
        chosen = tuple(questions[first:end])
        pieces.append(Piece(painting, chosen, num_columns, sum(num_answers[question] for question in chosen)))

    for end, question in enumerate(questions):
        shared = _shared_length(texts[questions[end - 1]], texts[question]) if end > first else 0
        new = len(texts[question]) - shared
        if end > first and num_columns + new > max_columns:
            add(end)
            first, num_columns, new = end, num_visual, len(texts[question])
        num_columns += new
    add(len(questions))
    return pieces


def choose_layout(pieces: Sequence[Piece], settings: PackingSettings) -> list[list[Piece]]:
    """The rows of pieces that cost least, by `layout_cost`, among all numbers of rows."""
    longest = max(piece.num_columns for piece in pieces)
    layouts = (balance(pieces, num_rows) for num_rows in range(1, len(pieces) + 1))
    fitting = (rows for rows in layouts if shape_of(rows).columns <= max(settings.max_columns, longest))
    return min(fitting, key=lambda rows: layout_cost(*shape_of(rows)[:2], settings.hidden_size))


def shape_of(layout: Sequence[Sequence[Piece]]) -> PackedShape:
    """The least shape that holds the rows.

    Answer columns are counted as if no two answers were predicted at one column, which is all but true.
    """
    return PackedShape(
        len(layout),
        max(sum(piece.num_columns for piece in row) for row in layout),
        max(sum(piece.num_answers for piece in row) for row in layout),
        sum(piece.num_answers for row in layout for piece in row),
    )


def layout_cost(num_rows: int, num_columns: int, hidden_size: int) -> float:
    """What rows of so many columns cost, in products of one token with a block's matrices.

    A block has 12 D^2 elements, 24 D^2 FLOP a token; scores and their products with values take 4 L D more, and each of
    these as long as `_ATTENTION_SLOWNESS` others.
    """
    return num_rows * num_columns * (1 + _ATTENTION_SLOWNESS * num_columns / (6 * hidden_size))


def num_tokens(pieces: Sequence[Piece]) -> int:
    """That are computed of a batch, but for padding."""
    return sum(piece.num_columns for piece in pieces)


def rank_of(shape: PackedShape, tokens: float, settings: PackingSettings) -> tuple[bool, float]:
    """Orders shapes for batches of so many tokens: first those with little padding, then by `layout_cost`."""
    is_padded = tokens < (1 - MOST_PADDING) * shape.rows * shape.columns
    return is_padded, layout_cost(shape.rows, shape.columns, settings.hidden_size)


def balance(pieces: Sequence[Piece], num_rows: int) -> list[list[Piece]]:
    """Distributes pieces over rows: the longest first, each to the row that is shortest so far."""
    rows: list[list[Piece]] = [[] for _ in range(num_rows)]
    loads = [(0, row) for row in range(num_rows)]
    for piece in sorted(pieces, key=lambda piece: -piece.num_columns):
        load, row = loads[0]
        rows[row].append(piece)
        heapq.heapreplace(loads, (load + piece.num_columns, row))
    return rows


def _shaped_layout(pieces: Sequence[Piece], settings: PackingSettings) -> tuple[list[list[Piece]], PackedShape]:
    """Rows of pieces and what to pad them to: the cheapest of the planned shapes that holds them."""
    layouts = {num_rows: balance(pieces, num_rows) for num_rows in sorted({shape.rows for shape in settings.shapes})}
    fitting = [shape for shape in settings.shapes if shape.holds(shape_of(layouts[shape.rows]))]
    if fitting:
        tokens = num_tokens(pieces)
        shape = min(fitting, key=lambda shape: (rank_of(shape, tokens, settings), shape))
        return layouts[shape.rows], shape
    layout = choose_layout(pieces, settings)
    own = shape_of(layout)
    return layout, own if not settings.shapes else PackedShape(
        own.rows, *(-(-size // _UNPLANNED_MULTIPLE) * _UNPLANNED_MULTIPLE for size in own[1:])
    )


def columns_of_answers(
    answers: Sequence[tuple[int, int, int]], num_rows: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """`answer_columns`, `most` a row, and `answer_places` of `PackedAnswers`; a column may predict several tokens.

    answers: row, column that predicts it, and id of each answer token.
    """
    columns = [sorted({column for answer_row, column, _ in answers if answer_row == row}) for row in range(num_rows)]
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


def _shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
