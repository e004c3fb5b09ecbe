"""A log that grows by whole pieces, on a disk that may be full for a while."""

import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from artkv.files import reason_of

# Kept in memory of what the disk does not take: the scalars of some ten thousand records.
MOST_KEPT_BYTES = 32 * 2**20
# A disk takes 4 ms for it, and what waits is training.
_SECONDS_BETWEEN_SYNCS = 1.0


class AppendedFile:
    """Appends pieces to a file in their order, each whole: none is torn by a disk that fills up in the middle of it.

    What the disk does not take is told once, kept in memory and written as soon as there is room again; where that is
    more than `most_kept_bytes`, the oldest pieces are given up, and their number told. A piece is kept until it is on
    the disk for sure: NFS tells that a quota is used up after it has lost what it took. Several threads may use it.
    """

    def __init__(self, path: Path, most_kept_bytes: int = MOST_KEPT_BYTES) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._synced = self._size = self._file.tell()  # of the pieces that are on the disk, and of those that are whole
        self._next_sync = 0.0
        self._is_torn = False
        self._kept: deque[bytes] = deque()
        self._num_written = 0  # of those kept
        self._kept_bytes = 0
        self._most_kept_bytes = most_kept_bytes
        self._num_lost = 0
        self._is_told = False
        self._lock = threading.RLock()

    def write(self, piece: bytes) -> None:
        """Hands a piece, after those that are kept, to the operating system; raises nothing."""
        with self._lock:
            self._kept.append(piece)
            self._kept_bytes += len(piece)
            self._write_kept(must_sync=self._kept_bytes > self._most_kept_bytes)
            while self._kept_bytes > self._most_kept_bytes:
                self._kept_bytes -= len(self._kept.popleft())
                self._num_lost += 1

    def flush(self) -> None:
        """Tries to bring to the disk what is kept."""
        with self._lock:
            self._write_kept(must_sync=True)

    def _write_kept(self, must_sync: bool) -> None:
        try:
            while self._num_written < len(self._kept):
                self._append(self._kept[self._num_written])
                self._num_written += 1
            # Where there was no room only that tells whether there is some again.
            if self._num_written and (must_sync or self._is_told or time.monotonic() >= self._next_sync):
                self._sync()
        except OSError as error:
            self._tell(
                f"cannot be written ({reason_of(error)}); training goes on, and what belongs there is kept in "
                "memory until there is room"
            )
            with suppress(OSError):
                self._sync()  # of those that got there whole, none is to be given up
        else:
            if self._is_told:
                self._is_told = False
                gap = f"; {self._num_lost} of its records did not fit into memory and are lost"
                print(f"artkv: {self._path}: is written again{gap if self._num_lost else ''}", file=sys.stderr)
                self._num_lost = 0

    def close(self) -> None:
        """Closes the file, and tells how much of it could not be written; a second call does nothing."""
        with self._lock:
            if self._file.closed:
                return
            self.flush()
            lost = self._num_lost + len(self._kept)
            if lost:
                print(
                    f"artkv: {self._path}: its last {lost} records could not be written and are lost", file=sys.stderr
                )
            with suppress(OSError):
                self._cut()
            with suppress(OSError):
                self._file.close()

    def _append(self, piece: bytes) -> None:
        self._cut()
        self._is_torn = True  # until the piece is whole
        written = 0
        while written < len(piece):
            written += os.write(self._file.fileno(), piece[written:])
        self._size += len(piece)
        self._is_torn = False

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file.fileno())
        except OSError:
            self._size, self._num_written = self._synced, 0
            self._is_torn = True
            raise
        self._synced = self._size
        while self._num_written:
            self._kept_bytes -= len(self._kept.popleft())
            self._num_written -= 1
        self._next_sync = time.monotonic() + _SECONDS_BETWEEN_SYNCS

    def _cut(self) -> None:
        """Takes back a piece of which the disk took a part, or those that it lost; that needs no room."""
        if self._is_torn:
            os.ftruncate(self._file.fileno(), self._size)
            self._is_torn = False

    def _tell(self, what: str) -> None:
        with suppress(OSError):
            self._cut()
        if not self._is_told:
            print(f"artkv: {self._path}: {what}", file=sys.stderr)
        self._is_told = True
