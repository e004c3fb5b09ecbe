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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from artkv.distributed import World
from artkv.frozen.block_layout import BlockLayout, Storage, TensorReader, block_layout
from artkv.frozen.host_memory import check_room

log = logging.getLogger(__name__)

_CUDA_HOST_REGISTER_PORTABLE = 1


class _Offer(NamedTuple):
    """What the rank that built the masters tells the others of its node.

    fd: its descriptor of the memory; they open it as /proc/<pid>/fd/<fd>.
    """

    layout: BlockLayout
    num_blocks: int
    fd: int


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
    def build(blocks: Sequence[Mapping[str, TensorReader]], storage: Storage, world: World) -> "HostBlocks":
        """Packs the blocks into memory that all ranks of this node map, on one of them; all ranks call it alike.

        The first rank of each node calls each reader once and lets go of each tensor before it reads the next
        (block 0's, which give the layout, are held together): the peak is the masters and one block. On other
        ranks no reader is called.

        blocks: for each block, readers by parameter name inside the block (`self_attn.q_proj.weight`).

        Raises, on every rank as `World.together` does:
            UserError: where a reader did, or the host has not so much memory.
            ValueError: if there is no block, or the blocks are not alike.
            RuntimeError: if a rank cannot map the memory.
        """
        places = world.gather(_place())
        builder = next(place for place in places if place[0] == _place()[0])
        with _memory_file() if builder == _place() else nullcontext() as fd:
            built = world.together(lambda: None if fd is None else _pack_all(blocks, storage, fd))
            mine = None if fd is None or built is None else _Offer(built.layout, len(blocks), fd)
            offer: Any = world.gather(mine)[places.index(builder)]
            # The builder's descriptor stays open until all have mapped the memory.
            return world.together(lambda: _map(builder[1], offer) if built is None else built)

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
                "with computing. frozen.storage: int8 needs half. Jobs, containers and WSL may have limits of theirs "
                "(ulimit -l; docs/install.md has WSL's)",
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
def _memory_file() -> Iterator[int]:
    """The descriptor of new memory without a name, closed at the end of the `with`."""
    fd = os.memfd_create("artkv-frozen-blocks", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _pack_all(blocks: Sequence[Mapping[str, TensorReader]], storage: Storage, fd: int) -> HostBlocks:
    if not blocks:
        raise ValueError("no blocks to stream")
    first = {name: read() for name, read in blocks[0].items()}
    layout = block_layout({name: tuple(tensor.shape) for name, tensor in first.items()}, storage)
    check_room(_stride(layout) * len(blocks), f"{len(blocks)} frozen blocks")
    os.ftruncate(fd, _stride(layout) * len(blocks))
    host = _mapped(fd, layout, len(blocks))
    layout.pack({name: partial(first.pop, name) for name in list(first)}, host.packed[0])
    for index, readers in enumerate(blocks[1:], start=1):
        try:
            layout.pack(readers, host.packed[index])
        except ValueError as error:
            raise ValueError(f"block {index}: {error}") from None
    return host


def _map(pid: int, offer: _Offer) -> HostBlocks:
    path = f"/proc/{pid}/fd/{offer.fd}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _mapped(fd, offer.layout, offer.num_blocks)
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeError(
            f"{path}: the frozen weights of this node's first rank cannot be opened ({error}); "
            "start a node's ranks as one user and without separate sandboxes"
        ) from None


def _mapped(fd: int, layout: BlockLayout, num_blocks: int) -> HostBlocks:
    stride = _stride(layout)
    memory = torch.frombuffer(mmap.mmap(fd, stride * num_blocks), dtype=torch.uint8)
    packed = [memory[index * stride :][: layout.packed_bytes] for index in range(num_blocks)]
    return HostBlocks(layout, packed, memory)


def _stride(layout: BlockLayout) -> int:
    return -(-layout.packed_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
