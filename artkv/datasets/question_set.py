"""The questions of a split with all that batches are made of, in one record."""

from dataclasses import dataclass

from artkv.datasets.painting_source import PaintingSource
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenized_table import TokenizedTable


@dataclass(frozen=True)
class QuestionSet:
    """A split: its checked CSV file, the token ids of its texts, and where its paintings come from.

    Rows and paintings have the same numbers in all three.
    """

    table: QuestionTable
    tokenized: TokenizedTable
    paintings: PaintingSource

    def __len__(self) -> int:
        return len(self.table)
