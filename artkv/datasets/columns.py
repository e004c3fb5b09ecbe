"""Columns of text in flat arrays."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from typing_extensions import Self

# Read one after another: few enough to hold their bytes twice.
_ROWS_AT_ONCE = 4096


class StringColumn:
    """A read-only sequence of strings held as UTF-8 bytes and offsets.

    Two NumPy arrays take little more than the text itself; a Python list of strings takes 57 bytes more for each.
    """

    def __init__(self, values: Iterable[str]) -> None:
        # surrogateescape: names of files on disk may hold bytes that are not UTF-8.
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self._offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(value) for value in encoded], out=self._offsets[1:])
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> Self:
        """The column that `arrays` was called on, of the arrays that it gave, beside others."""
        column = cls(())
        column._offsets, column._bytes = arrays[f"{name}_offsets"], arrays[f"{name}_bytes"]
        return column

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What holds the strings: where each begins, (rows + 1,) int64, and their UTF-8 bytes."""
        return {f"{name}_offsets": self._offsets, f"{name}_bytes": self._bytes}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a column of {len(self)}")
        start, end = self._offsets[row], self._offsets[row + 1]
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            places = self._offsets[start : start + _ROWS_AT_ONCE + 1].tolist()
            text = self._bytes[places[0] : places[-1]].tobytes()
            for begin, end in pairwise(places):
                yield text[begin - places[0] : end - places[0]].decode("utf-8", "surrogateescape")

    @property
    def num_bytes(self) -> int:
        """Of memory, offsets included."""
        return self._offsets.nbytes + self._bytes.nbytes

    def sha256(self) -> bytes:
        """Of the strings, and of where each ends."""
        sha = hashlib.sha256(self._offsets.data)
        sha.update(self._bytes.data)
        return sha.digest()


class PathColumn:
    """A read-only sequence of paths, as compact as the `strings` that it is made of."""

    def __init__(self, values: Iterable[Path] | StringColumn) -> None:
        self.strings = values if isinstance(values, StringColumn) else StringColumn(str(value) for value in values)

    def __len__(self) -> int:
        return len(self.strings)

    def __getitem__(self, row: int) -> Path:
        return Path(self.strings[row])

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.strings)
