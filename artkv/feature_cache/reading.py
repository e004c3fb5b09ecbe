"""Reads records of a feature cache into batches.

A record is copied once, by the kernel, from the page cache into the batch's own (page-locked) memory: `preadv`
rather than a mapping, because it takes no page fault for each 4 KiB, does not grow the process by what it has
read, and answers a file that was cut off with a short read instead of SIGBUS. The files stay safetensors, which
others may map.

Letters in tensor names are explained in `artkv.batch`.
"""

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from artkv.batch import PaintingFeatures
from artkv.datasets.columns import PathColumn
from artkv.errors import RunFailed, UserError
from artkv.feature_cache.shards import Shard
from artkv.reading import check_regular, remedy_for

# Files that all records of a process keep open together.
_MAX_OPEN_FILES = 1024
# The same, of what the system allows a process (1024 mostly), which other things have files open too.
_SHARE_OF_OPEN_FILES = 4
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class CachedPaintings:
    """The paintings of one table as records of a feature cache: a `PaintingSource` without encoders.

    vit: records of its features. art: of each art encoder's that batches get.

    May be used from several threads.
    """

    def __init__(self, vit: "Records", art: Sequence["Records"]) -> None:
        self._vit = vit
        self._art = tuple(art)

    def load(self, paintings: np.ndarray, art_paintings: np.ndarray, pin_memory: bool) -> PaintingFeatures:
        """(I, N, V) in the compute dtype, and of each art encoder (I, F) or (I, M, F) float32."""
        return PaintingFeatures(self._vit.load(paintings, pin_memory), self.load_art(art_paintings, pin_memory))

    def load_art(self, paintings: np.ndarray, pin_memory: bool) -> tuple[Tensor, ...]:
        """(I, F) or (I, M, F) float32 of each art encoder."""
        return tuple(records.load(paintings, pin_memory) for records in self._art)

    def load_blank(self, number: int, pin_memory: bool) -> PaintingFeatures:
        """See `PaintingSource`."""
        blank = np.full(number, self._vit.blank)
        return self.load(blank, blank, pin_memory)

    def close(self) -> None:
        """Closes its files; the next batch opens them again."""
        for records in (self._vit, *self._art):
            records.close()


class Records:
    """One encoder's records of the paintings of a table.

    places: (paintings + 1, 2) int64, each painting's shard and record in it, and at the end the blank picture's.

    May be used from several threads. Files stay open; a process has records of each encoder and table, which share what
    may be open.
    """

    _living: ClassVar["WeakSet[Records]"] = WeakSet()

    def __init__(self, shards: list[Shard], places: np.ndarray) -> None:
        self._paths = PathColumn(shard.path for shard in shards)
        self._places = places
        self._block = shards[0].features
        self._offsets = np.array([shard.features.offset for shard in shards], dtype=np.int64)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._living.add(self)

    @property
    def blank(self) -> int:
        """The number of the blank picture, behind all paintings."""
        return len(self._places) - 1

    def load(self, paintings: np.ndarray, pin_memory: bool) -> Tensor:
        """The records of (I,) paintings, stacked."""
        places_I2, block = self._places[paintings], self._block
        records = torch.empty((len(places_I2), *block.shape), dtype=block.dtype, pin_memory=pin_memory)
        rows = records.view(len(places_I2), -1).view(torch.uint8).numpy()
        starts = self._offsets[places_I2[:, 0]] + places_I2[:, 1] * block.record_bytes
        with self._lock:  # no other thread may close a file in between
            if len(places_I2) > 1:
                for (shard, _), start in zip(places_I2, starts, strict=True):
                    _announce(self._file(int(shard)), int(start), block.record_bytes)
            for row, (shard, _), start in zip(rows, places_I2, starts, strict=True):
                self._read(int(shard), int(start), row.data)
        return records

    def _read(self, shard: int, start: int, target: memoryview) -> None:
        done, is_reopened = 0, False
        while done < len(target):
            file = self._file(shard)
            try:
                count = os.preadv(file, [target[done:]], start + done)
            except OSError as error:
                # On NFS, of a file that was removed and made again, with the same bytes.
                if error.errno == errno.ESTALE and not is_reopened:
                    os.close(self._files.pop(shard))
                    is_reopened = True
                    continue
                raise RunFailed(
                    f"{self._paths[shard]}: cannot be read any more ({error.strerror}); look at the disk or file "
                    "server, and go on with --resume"
                ) from None
            if count == 0:
                raise UserError(
                    f"{self._paths[shard]}: is shorter than it was at the start; delete this file, `artkv cache` "
                    "makes it again"
                )
            done += count

    def _file(self, shard: int) -> int:
        """The open file of a shard; the one used longest ago makes room for it."""
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        while len(self._files) >= self._most_files():
            self._close_oldest()
        path: Path = self._paths[shard]
        while shard not in self._files:
            try:
                check_regular(path)
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in _TOO_MANY_FILES:
                    if not self._files:
                        raise
                    self._close_oldest()
                    continue
                remedy = remedy_for(error, "run `artkv cache` again")
                raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
        return self._files[shard]

    def _most_files(self) -> int:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(_MAX_OPEN_FILES, allowed // _SHARE_OF_OPEN_FILES) // len(self._living))

    def _close_oldest(self) -> None:
        os.close(self._files.popitem(last=False)[1])

    def close(self) -> None:
        """Closes its files; the next batch opens them again."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()


def _announce(file: int, start: int, num_bytes: int) -> None:
    """Lets the disk begin with a record while those before it are copied."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, start, num_bytes, os.POSIX_FADV_WILLNEED)
