"""Which rank the others wait for.

Ranks of synchronous training all take the same time for a step, as the quick ones wait for the slow one in the
collectives. What differs is each one's own part: waiting for its data, and the forward passes, in which ranks
do not meet.
"""

import socket
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from artkv.distributed import ToHost, World
from artkv.monitoring.device_time import DeviceTime

T = TypeVar("T")

# A rank is named as slow from so much above the other ranks' median on, in windows one after another: 20 % are more
# than the batches' unequal sizes make over a window of several steps.
_SLOWER_BY = 1.2
_WINDOWS = 3


class _OwnStep(NamedTuple):
    """What of one step was a rank's own: the host's seconds for data, and forward passes by `DeviceTime`."""

    seconds_waited: float
    passes: list[tuple[Any, Any]]


class OwnTime:
    """Adds up the seconds of each step that are this rank's own; nothing in it waits for the device."""

    def __init__(self, time: DeviceTime) -> None:
        self._time = time
        self._steps: list[_OwnStep] = []

    def waits_for(self, batches: Iterator[T]) -> Iterator[T]:
        """`batches`, with the time that each takes to come; each is a step."""
        while True:
            began = self._time.now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._steps.append(_OwnStep(self._time.now() - began, []))
            yield batch

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The time inside is a forward pass of the last step."""
        began = self._time.mark()
        yield
        self._steps[-1].passes.append((began, self._time.mark()))

    def read(self) -> float | None:
        """Seconds a step since the last reading; None without steps.

        On CUDA the last step is left to the next reading, since the device is not through with it.
        """
        ended = len(self._steps) - self._time.is_queued
        over, self._steps = self._steps[:ended], self._steps[ended:]
        if not over:
            return None
        in_passes = sum(self._time.seconds(*one) for step in over for one in step.passes)
        return (sum(step.seconds_waited for step in over) + in_passes) / len(over)


class Stragglers:
    """Compares the ranks' own times; made on all ranks at once, as it asks them for their hosts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts = world.gather(socket.gethostname())
        self._slow_windows = 0
        self._slow_rank: int | None = None

    def share(self, own_seconds: float | None) -> ToHost | None:
        """All ranks' own seconds by rank, on their way to the host; None of one rank, or where nothing was timed.

        Called on all ranks; none waits for the device.
        """
        if self._world.size == 1 or own_seconds is None:
            return None
        seconds = torch.zeros(self._world.size, dtype=torch.float64, device=self._world.device)
        seconds[self._world.rank].fill_(own_seconds)
        return ToHost(self._world.all_reduce_sum(seconds))

    def compare(self, by_rank: list[float]) -> tuple[dict[str, float], str | None]:
        """The window's metrics, and a line for the console where a rank has been slow for some windows.

        own_step_seconds: the ranks' median. own_step_seconds_max and slowest_rank: the most, and whose.
        """
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
