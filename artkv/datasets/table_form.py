"""How a table of questions is written: names of its columns, delimiter, encoding, and how much of it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from typing_extensions import Self

from artkv.config import DatasetConfig

# By the names that `dataset.delimiter` takes; where it is auto, the first that a header has all columns with.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


@dataclass(frozen=True)
class TableForm:
    """How a table is to be read.

    columns: the header's name of a column by what it is for; one that is not in it has the name of what it is for, and
    one that is None is not read. delimiter: a key of `DELIMITERS`, or auto. encoding: a Python codec of text. limit: of
    the paintings, in the order of their first rows, only so many are read; None: all. section: the section of settings
    that all this is from, which messages name; None: there is none.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    delimiter: str = "auto"
    encoding: str = "utf-8"
    limit: int | None = None
    section: str | None = None

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Self:
        """As a config has it."""
        return cls(dict(dataset.columns), dataset.delimiter, dataset.encoding, dataset.limit, "dataset")

    def name_of(self, role: str) -> str | None:
        """The header's name of the column for `role`; None where there is to be none."""
        return self.columns.get(role, role)

    def or_set(self, setting: str) -> str:
        """What a remedy ends with, where a setting is another way out: `, or set dataset.encoding: latin-1`."""
        return "" if self.section is None else f", or set {self.section}.{setting}"


PLAIN = TableForm()
