"""Records what a function launches on CUDA, and the memory that recordings take."""

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


def give_back_unused() -> None:
    """Gives the device what PyTorch holds of its memory without use."""
    with suppress(RuntimeError):  # after a failed capture some versions of torch can free nothing any more
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether device memory ran out: in PyTorch's allocator, or in a library that asks CUDA itself."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    )


class Recorder(Protocol):
    """Records what a function launches."""

    def record(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Runs it once; returns what runs it again into the same results, and these."""

    def give_back(self) -> None:
        """Gives memory back to the device that nothing holds: what eager calls left, and graphs that are gone."""

    def is_short(self) -> bool:
        """Whether the device has less memory left than graphs hold, which nothing else may have."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: no two of them may be in use at a time.

    A pool has what its graphs took when they were recorded, piece by piece, and a graph whose tensors are larger than
    those of all before takes new pieces. So a pool that follows another begins with one piece of that one's size.
    """

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._pool_bytes = self._most_bytes = 0  # of the present pool, and of the largest one so far
        # Of its own: torch has a workspace of cuBLAS' for each stream, in the pool of the graph that was recorded first
        # there, and lets go of it with any graph of that stream, though others may still be replayed.
        self._stream: torch.cuda.Stream | None = None

    def record(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        self.give_back()  # the pool's memory is the graphs' alone
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        # A pool is gone with the last of its graphs, and its name with it.
        pool = next((other.pool() for other in self._graphs), None)
        is_new = pool is None
        pool = pool or torch.cuda.graph_pool_handle()
        # Other threads page-lock batches meanwhile, which concerns no graph.
        capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        before = torch.cuda.current_stream()
        try:
            with capture:  # which frees, as it begins, what the collector of garbage finds
                large_bytes = _large_bytes()
                if is_new and self._most_bytes:
                    torch.empty(self._most_bytes, dtype=torch.uint8, device="cuda")  # the piece, which is free at once
                results = run()
        except BaseException:
            torch.cuda.set_stream(before)  # where the capture's end fails torch leaves its own current
            _end_allocation(pool)
            raise
        self._graphs.add(graph)
        self._pool_bytes = _large_bytes() - large_bytes + (0 if is_new else self._pool_bytes)
        self._most_bytes = max(self._most_bytes, self._pool_bytes)
        return graph.replay, results

    def give_back(self) -> None:
        give_back_unused()

    def is_short(self) -> bool:
        self.give_back()
        free_bytes, _ = torch.cuda.mem_get_info()
        return free_bytes < torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _large_bytes() -> int:
    """What PyTorch has of the device's memory for tensors of more than 1 MiB; those below have pieces of their own."""
    found: int = torch.cuda.memory_stats()["reserved_bytes.large_pool.current"]
    return found


def _end_allocation(pool: Any) -> None:
    """After a failed capture, which torch's allocator may else go on with: it would free nothing any more."""
    with suppress(RuntimeError, AttributeError):  # where it has ended, or has another name
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
