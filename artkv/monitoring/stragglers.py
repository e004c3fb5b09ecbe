"""Which rank the others wait for.

Ranks of synchronous training all take the same time for a step, as the quick ones wait for the slow one in the
collectives. What differs is each one's own part: waiting for its data, and the forward passes, in which ranks
do not meet.
"""

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from artkv.distributed import World

T = TypeVar("T")

# A rank is named as slow from so much above the other ranks' median on, in windows one after another: 20 % are more
# than the batches' unequal sizes make over a window of several steps.
_SLOWER_BY = 1.2
_WINDOWS = 3


class OwnTime:
    """Adds up the seconds of each step that are this rank's own; nothing in it waits for the device.

    On CUDA the forward passes are timed by events in the device's queue, which `read` waits for: call it where
    the device is waited for anyway.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._on_cuda = device.type == "cuda"
        self._seconds_waited = 0.0
        self._passes: list[tuple[Any, Any]] = []  # when each forward pass began and ended, by `_mark`
        self._steps = 0

    def waits_for(self, batches: Iterator[T]) -> Iterator[T]:
        """`batches`, with the time that each takes to come; each is a step."""
        while True:
            began = self._now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._seconds_waited += self._now() - began
            self._steps += 1
            yield batch

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The time inside is a forward pass."""
        began = self._mark()
        yield
        self._passes.append((began, self._mark()))

    def read(self) -> float:
        """Seconds a step since the last reading; 0.0 without steps."""
        if self._on_cuda and self._passes:
            self._passes[-1][1].synchronize()
        in_passes = sum(b.elapsed_time(e) / 1000 if self._on_cuda else e - b for b, e in self._passes)
        mean = (self._seconds_waited + in_passes) / self._steps if self._steps else 0.0
        self._seconds_waited, self._passes, self._steps = 0.0, [], 0
        return mean

    def _mark(self) -> Any:
        if not self._on_cuda:
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Stragglers:
    """Compares the ranks' own times; made on all ranks at once, as it asks them for their hosts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts = world.gather(socket.gethostname())
        self._slow_windows = 0
        self._slow_rank: int | None = None

    def compare(self, own_seconds: float) -> tuple[dict[str, float], str | None]:
        """The window's metrics, and a line for the console where a rank has been slow for some windows.

        Called on all ranks. own_step_seconds: the ranks' median. own_step_seconds_max and slowest_rank: the
        most, and whose. One rank has no metrics.
        """
        if self._world.size == 1:
            return {}, None
        seconds = torch.zeros(self._world.size, dtype=torch.float64, device=self._world.device)
        seconds[self._world.rank] = own_seconds
        by_rank = self._world.all_reduce_sum(seconds).tolist()
        slowest = max(range(self._world.size), key=by_rank.__getitem__)
        others = statistics.median(by_rank[:slowest] + by_rank[slowest + 1 :])
        metrics = {
            "own_step_seconds": statistics.median(by_rank),
            "own_step_seconds_max": by_rank[slowest],
            "slowest_rank": float(slowest),
        }
        return metrics, self._note(slowest, by_rank[slowest], others)

    def _note(self, slowest: int, seconds: float, others: float) -> str | None:
        if seconds < _SLOWER_BY * others:
            self._slow_rank, self._slow_windows = None, 0
            return None
        self._slow_windows = self._slow_windows + 1 if slowest == self._slow_rank else 1
        self._slow_rank = slowest
        if self._slow_windows != _WINDOWS:  # once, until it was quick again or another is slower
            return None
        slower = f"{seconds / others - 1:.0%} more than" if others > 0 else "against"
        return (
            f"rank {slowest} on {self._hosts[slowest]} is slow: data and forward pass take it {seconds:.3g} s a step, "
            f"{slower} the other ranks' {others:.3g} s; all wait for it"
        )
