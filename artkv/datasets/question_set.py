"""The questions of a split with all that batches are made of, in one record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artkv.datasets.choice_packing import RowChoices
from artkv.datasets.painting_source import PaintingSource
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenized_table import TokenizedTable


@dataclass(frozen=True)
class QuestionSet:
    """A split: its checked CSV file, the token ids of its texts, and where its paintings come from.

    Rows and paintings have the same numbers in all of them. choices: answers that are to be scored beside those that
    are generated; None: there are none.
    """

    table: QuestionTable
    tokenized: TokenizedTable
    paintings: PaintingSource
    choices: RowChoices | None = None

    def __len__(self) -> int:
        return len(self.table)

    def distinct_paintings(self, rows: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """The rows' paintings, each once, and for each row the place of its painting among them."""
        painting_of_row = self.table.painting_of_row
        places: dict[int, int] = {}
        painting_index = [places.setdefault(int(painting_of_row[row]), len(places)) for row in rows]
        return np.fromiter(places, dtype=np.int64), painting_index
