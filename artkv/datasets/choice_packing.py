"""Packs answers that questions may have: all of a painting's prompts and answers are branches of one prefix tree.

Letters in shapes are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from artkv.batch import PackedChoices
from artkv.datasets.packing import PackingSettings, columns_of_answers, lay_out_rows
from artkv.datasets.prompt_packing import layout_of_texts

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class RowChoices:
    """The answers that each question of a table may have, as token ids.

    answer_sets: sets of answers, each ended by its newline. set_of_row: (rows,) int64, which of them a question has;
    -1 for none.
    """

    answer_sets: tuple[tuple[Tokens, ...], ...]
    set_of_row: np.ndarray

    def of_row(self, row: int) -> tuple[Tokens, ...]:
        """The answers to a question; empty where it has none to choose among."""
        number = int(self.set_of_row[row])
        return () if number < 0 else self.answer_sets[number]


class PossibleAnswer(NamedTuple):
    """painting: its number in the batch. prompt: BOS included. answer: its newline included."""

    painting: int
    prompt: Tokens
    answer: Tokens

    @property
    def text(self) -> Tokens:
        """The tokens that predict something: not the newline."""
        return (*self.prompt, *self.answer[:-1])


def pack_choices(
    answers: Sequence[PossibleAnswer],
    pad_token_id: int,
    settings: PackingSettings,
    num_seen: Sequence[int] | None = None,
) -> PackedChoices:
    """The packed form of answers to one question or many; a pure function of them.

    num_seen: see `lay_out_rows`.
    """
    order = sorted(range(len(answers)), key=lambda number: (answers[number].painting, answers[number].text))
    texts = [answers[number].text for number in order]
    layout = layout_of_texts(texts, [answers[number].painting for number in order], settings)
    num_columns = max(sum(piece.num_columns for piece in row) for row in layout)
    rows = lay_out_rows(layout, num_columns, texts, pad_token_id, settings, num_seen)
    predicted: list[tuple[int, int, int]] = []  # row, column that predicts, id
    owners: list[int] = []
    for row, piece, text_start, paths in rows.placed:
        for place, path in zip(piece.questions, paths, strict=True):
            _, prompt, answer = answers[order[place]]
            predicting = text_start + path[len(prompt) - 1 :]  # from the prompt's last token on
            predicted += [(row, int(column), token) for column, token in zip(predicting, answer, strict=True)]
            owners += [order[place]] * len(answer)
    used = [len({column for at, column, _ in predicted if at == row}) for row in range(len(layout))]
    answer_columns, answer_places = columns_of_answers(predicted, len(layout), max(used))
    return PackedChoices(
        **rows.tensors,
        answer_columns=torch.from_numpy(answer_columns),
        answer_places=torch.from_numpy(answer_places),
        answer_ids=torch.tensor([token for _, _, token in predicted], dtype=torch.int64),
        answer_owners=torch.tensor(owners, dtype=torch.int64),
        num_answers=len(answers),
    )
