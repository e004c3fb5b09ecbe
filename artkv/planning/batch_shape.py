"""The shape of a micro-batch, and of what OPT reads of it."""

from dataclasses import dataclass
from functools import lru_cache

from artkv.datasets.packing import PackingSettings, choose_layout, cut_into_pieces, shape_of
from artkv.datasets.tokenization import IGNORED_LABEL


@dataclass(frozen=True)
class BatchShape:
    """A micro-batch of one rank.

    paintings: at most as many as questions. text_tokens: T, of the longest question with its answer.
    is_packed: whether a painting's questions share a sequence.
    """

    paintings: int
    questions: int
    text_tokens: int
    is_packed: bool = False


@dataclass(frozen=True)
class Sequences:
    """What OPT reads of a micro-batch: (rows, columns) tokens.

    predicting_columns: of each row, those that the last block computes. answer_tokens: that have logits.
    """

    rows: int
    columns: int
    predicting_columns: int
    answer_tokens: int


@lru_cache(maxsize=64)
def sequences(batch: BatchShape, num_visual_tokens: int, hidden_size: int) -> Sequences:
    """Those of the largest batch of that shape: all questions of the longest text, alike in BOS only, all answer.

    Packed, they are laid out by the code that training packs with, before they are padded to one of a run's shapes.
    """
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
