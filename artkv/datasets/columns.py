"""Columns of text in flat arrays."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np


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

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a column of {len(self)}")
        start, end = self._offsets[row], self._offsets[row + 1]
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

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
    """A read-only sequence of paths, as compact as `StringColumn`."""

    def __init__(self, values: Iterable[Path]) -> None:
        self._strings = StringColumn(str(value) for value in values)

    def __len__(self) -> int:
        return len(self._strings)

    def __getitem__(self, row: int) -> Path:
        return Path(self._strings[row])

    def __iter__(self) -> Iterator[Path]:
        return (self[row] for row in range(len(self)))
