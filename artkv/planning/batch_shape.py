"""The shape of a micro-batch, and of what OPT reads of it."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from artkv.datasets.packing import PackingSettings, choose_layout, cut_into_pieces, shape_of
from artkv.datasets.tokenization import IGNORED_LABEL

# Paintings. The time to lay out goes with their square: half a second for so many, a minute for ten times as many.
_MOST_LAID_OUT = 512


@dataclass(frozen=True)
class BatchShape:
    """A micro-batch of one rank.

    paintings: at most as many as questions. text_tokens: T, of the longest question with its answer; packed, as if
    questions on a painting had nothing but BOS in common.
    is_packed: whether a painting's questions share a sequence. longest_text: of all texts, validation's too, in tokens;
    None: text_tokens. answered_at_once: questions where it is not the config that says how many.
    """

    paintings: int
    questions: int
    text_tokens: int
    is_packed: bool = False
    longest_text: int | None = None
    answered_at_once: int | None = None


@dataclass(frozen=True)
class Sequences:
    """What OPT reads of a micro-batch: (rows, columns) tokens.

    predicting_columns: of each row, those that the last block computes. answer_tokens: that have logits.
    """

    rows: int
    columns: int
    predicting_columns: int
    answer_tokens: int


def largest_batch(painting_of_row: np.ndarray, lengths: np.ndarray, batch_size: int, is_packed: bool) -> BatchShape:
    """What no micro-batch of a table exceeds, whatever the epoch's order.

    lengths: (rows,) int64, tokens of each question with its answer. Packed, sequences hold texts one after the other:
    their mean counts, over the longest that a micro-batch can hold. Not packed, all are padded to the longest.
    """
    counts = np.bincount(painting_of_row)
    # A painting of more questions than a micro-batch holds is cut, and the rest may lie beside others.
    pieces = np.sort(np.where(counts <= batch_size, counts, counts % batch_size))
    pieces = pieces[pieces > 0]
    questions = min(batch_size, len(lengths))
    longest = np.sort(lengths)[-questions:]
    return BatchShape(
        paintings=max(1, int(np.searchsorted(np.cumsum(pieces), batch_size, side="right"))),
        questions=questions,
        text_tokens=int(np.ceil(longest.mean())) if is_packed else int(longest.max()),
        is_packed=is_packed,
        longest_text=int(longest.max()),
    )


@lru_cache(maxsize=64)
def sequences(batch: BatchShape, num_visual_tokens: int, hidden_size: int) -> Sequences:
    """Those of the largest batch of that shape: all questions of the longest text, alike in BOS only, all answer.

    Packed, they are laid out by the code that training packs with, before they are padded to one of a run's shapes; of
    very many paintings a part is laid out, and the rest is taken to be like it.
    """
    if batch.is_packed and batch.paintings > _MOST_LAID_OUT:
        share = batch.paintings / _MOST_LAID_OUT
        part = sequences(
            replace(batch, paintings=_MOST_LAID_OUT, questions=math.ceil(batch.questions / share)),
            num_visual_tokens, hidden_size,
        )  # fmt: skip
        return replace(part, rows=math.ceil(part.rows * share), answer_tokens=batch.questions * (batch.text_tokens - 1))
    if not batch.is_packed:
        columns = num_visual_tokens + batch.text_tokens
        return Sequences(batch.questions, columns, columns, batch.questions * (batch.text_tokens - 1))
    # The first token is no answer, the last one is predicted and not read.
    encoded = []
    for question in range(batch.questions):
        answer = [*range(1 + question * batch.text_tokens, (question + 1) * batch.text_tokens)]
        encoded.append(([0, *answer], [IGNORED_LABEL, *answer]))
    painting_index = [question % batch.paintings for question in range(batch.questions)]
    settings = PackingSettings(num_visual_tokens, hidden_size)
    return Sequences(*shape_of(choose_layout(cut_into_pieces(encoded, painting_index, settings), settings)))
