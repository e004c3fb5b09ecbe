"""The masters of frozen blocks in host memory: one copy on a node, shared by all its ranks.

The memory is an anonymous file (`memfd_create`): it has no name in any folder, and the kernel frees it when the
last process that maps it is gone, however that process ended. There is no moment in which a kill could leave
anything behind.
"""

import hashlib
import logging
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from artkv.errors import UserError
from artkv.frozen.block_layout import BlockLayout, Storage, TensorReader, block_layout

log = logging.getLogger(__name__)

Gather = Callable[[Any], list[Any]]

_CUDA_HOST_REGISTER_PORTABLE = 1


class _Offer(NamedTuple):
    """What the rank that built the masters tells the others of its node.

    fd: its descriptor of the memory; they open it as /proc/<pid>/fd/<fd>.
    """

    layout: BlockLayout
    num_blocks: int
    fd: int


class _Failure(NamedTuple):
    """What one rank tells all others when it could not go on, so that none waits for it."""

    message: str
    is_users: bool


@dataclass(eq=False)
class HostBlocks:
    """Packed frozen blocks in host memory; see `build`.

    layout: where the tensors lie in each packed block.
    packed: one uint8 tensor of shape (layout.packed_bytes,) a block. Never written to after `build`.
    is_pinned: whether copies to a CUDA device can overlap with computing.
    """

    layout: BlockLayout
    packed: list[Tensor]
    _memory: Tensor
    is_pinned: bool = False

    @staticmethod
    def build(
        blocks: Sequence[Mapping[str, TensorReader]],
        storage: Storage,
        gather: Gather = lambda value: [value],
    ) -> "HostBlocks":
        """Packs the blocks into memory that all ranks of this node map, on one of them; all ranks call it alike.

        The first rank of each node calls each reader once and lets go of each tensor before it reads the next
        (block 0's, which give the layout, are held together): the peak is the masters and one block. On other
        ranks no reader is called.

        blocks: for each block, readers by parameter name inside the block (`self_attn.q_proj.weight`).
        gather: a collective that gives every rank's small picklable value on every rank, in one order, such as
            `World.gather`. It may span nodes. The default is for a single process.

        Raises:
            UserError: where a reader did, on every rank.
            ValueError: if there is no block, or the blocks are not alike (RuntimeError on the other ranks).
            RuntimeError: if a rank failed or cannot map the memory, on every rank.
        """
        places = gather(_place())
        builder = next(place for place in places if place[0] == _place()[0])
        with _built(blocks, storage) if builder == _place() else _nothing_built() as (mine, host, error):
            offers = gather((_place(), mine))
            _raise_failures([offer for _, offer in offers], error)
            if host is None:
                offer = next(offer for place, offer in offers if place == builder)
                host, mine, error = _map(builder, offer)
            # The builder's descriptor stays open until all have mapped the memory.
            _raise_failures(gather(mine if isinstance(mine, _Failure) else None), error)
        assert host is not None
        return host

    @property
    def num_bytes(self) -> int:
        """Host memory of all blocks, once a node."""
        return self._memory.numel()

    def digest(self) -> str:
        """SHA-256 over all packed blocks."""
        sha = hashlib.sha256()
        for packed in self.packed:
            sha.update(packed.numpy().data)
        return sha.hexdigest()

    def pin(self) -> None:
        """Page-locks the masters for this process's CUDA device; where that fails, warns and goes on without.

        The buffer is registered as it is. PyTorch's pinned allocations would round each block up to a power of
        two: 268 MB for a block of OPT-2.7b's 157 MB.
        """
        if self.is_pinned:
            return
        cudart: Any = torch.cuda.cudart()
        address = self._memory.data_ptr()
        code = int(cudart.cudaHostRegister(address, self.num_bytes, _CUDA_HOST_REGISTER_PORTABLE))
        if code != 0:
            with suppress(Exception):  # CUDA keeps the error and reports it at the next kernel: let it be this one
                torch.zeros(1, device="cuda")
            log.warning(
                "frozen blocks: %.1f GB of host memory cannot be page-locked (CUDA error %d); copies will not overlap "
                "with computing. Raise the container's or the job's locked-memory limit (ulimit -l)",
                self.num_bytes / 1e9,
                code,
            )
            return
        self.is_pinned = True
        # Before the tensors go, and with them the mapping: CUDA must not keep a registration of unmapped pages.
        # At exit the process's end does it.
        weakref.finalize(self._memory, cudart.cudaHostUnregister, address).atexit = False


def _place() -> tuple[tuple[str, str], int]:
    """((kernel boot, process namespace), pid): processes with equal first parts see each other in /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return (boot, os.readlink("/proc/self/ns/pid")), os.getpid()


@contextmanager
def _built(
    blocks: Sequence[Mapping[str, TensorReader]], storage: Storage
) -> Iterator[tuple[_Offer | _Failure, HostBlocks | None, Exception | None]]:
    """Builds the masters; their descriptor is open inside the `with`. An error is handed on, not raised."""
    fd = os.memfd_create("artkv-frozen-blocks", os.MFD_CLOEXEC)
    try:
        try:
            host = _pack_all(blocks, storage, fd)
            result: Any = (_Offer(host.layout, len(blocks), fd), host, None)
        except Exception as error:
            result = (_failure(error), None, error)
        yield result
    finally:
        os.close(fd)


@contextmanager
def _nothing_built() -> Iterator[tuple[None, None, None]]:
    yield None, None, None


def _pack_all(blocks: Sequence[Mapping[str, TensorReader]], storage: Storage, fd: int) -> HostBlocks:
    if not blocks:
        raise ValueError("no blocks to stream")
    first = {name: read() for name, read in blocks[0].items()}
    layout = block_layout({name: tuple(tensor.shape) for name, tensor in first.items()}, storage)
    os.ftruncate(fd, _stride(layout) * len(blocks))
    host = _mapped(fd, layout, len(blocks))
    layout.pack({name: partial(first.pop, name) for name in list(first)}, host.packed[0])
    for index, readers in enumerate(blocks[1:], start=1):
        try:
            layout.pack(readers, host.packed[index])
        except ValueError as error:
            raise ValueError(f"block {index}: {error}") from None
    return host


def _map(
    builder: tuple[tuple[str, str], int], offer: _Offer
) -> tuple[HostBlocks | None, _Failure | None, Exception | None]:
    path = f"/proc/{builder[1]}/fd/{offer.fd}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _mapped(fd, offer.layout, offer.num_blocks), None, None
        finally:
            os.close(fd)
    except OSError as error:
        reason = RuntimeError(
            f"{path}: the frozen weights of this node's first rank cannot be opened ({error}); "
            "start a node's ranks as one user and without separate sandboxes"
        )
        return None, _failure(reason), reason


def _mapped(fd: int, layout: BlockLayout, num_blocks: int) -> HostBlocks:
    stride = _stride(layout)
    memory = torch.frombuffer(mmap.mmap(fd, stride * num_blocks), dtype=torch.uint8)
    packed = [memory[index * stride :][: layout.packed_bytes] for index in range(num_blocks)]
    return HostBlocks(layout, packed, memory)


def _stride(layout: BlockLayout) -> int:
    return -(-layout.packed_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _failure(error: Exception) -> _Failure:
    return _Failure(str(error), isinstance(error, UserError))


def _raise_failures(outcomes: list[Any], mine: Exception | None) -> None:
    """Raises on every rank if any failed: its own error on the rank that failed, its message on the others."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, _Failure)]
    if mine is not None:
        raise mine
    if failures:
        message = failures[0].message
        raise UserError(message) if failures[0].is_users else RuntimeError(f"another rank failed: {message}")
