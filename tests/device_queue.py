"""A device that computes what it was given while the host goes on, on a clock that tests turn; it needs no card."""

import sys
from collections import Counter
from typing import Any

import pytest
import torch

from artkv.distributed import ToHost
from artkv.monitoring.device_time import DeviceTime


class DeviceQueue:
    """The host's clock, and until when the device is busy.

    waits: for what the host has waited, as module and function that had it copied or noted. All `ToHost` copies and
    CUDA events are the queue's while it is installed.
    """

    def __init__(self) -> None:
        self.host_seconds = 100.0
        self.busy_until = 100.0
        self.waits: Counter[str] = Counter()

    def launch(self, seconds: float) -> None:
        """Gives the device so much to do."""
        self.busy_until = max(self.host_seconds, self.busy_until) + seconds

    def has_reached(self, moment: float) -> bool:
        return moment <= self.host_seconds

    def wait(self, moment: float, asked_by: str) -> None:
        """The host waits until the device is there, if it is not."""
        if not self.has_reached(moment):
            self.waits[asked_by] += 1
            self.host_seconds = moment

    def time(self) -> DeviceTime:
        """As on a card, whose queue this is."""
        return DeviceTime(torch.device("cuda"), lambda: self.host_seconds)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes `torch.cuda.Event` one of this queue, and a copy to the host take the device a second."""
        queue = self
        made: dict[int, tuple[ToHost, float, str]] = {}
        make, read = ToHost.__init__, ToHost.read

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.moment = max(queue.host_seconds, queue.busy_until)
                self.asked_by = _who(3)

            def synchronize(self) -> None:
                queue.wait(self.moment, self.asked_by)

            def elapsed_time(self, end: "Event") -> float:
                assert queue.has_reached(self.moment), "CUDA raises here"
                assert queue.has_reached(end.moment), "CUDA raises here"
                return 1000 * (end.moment - self.moment)

        def made_later(self: ToHost, numbers: torch.Tensor) -> None:
            make(self, numbers)
            queue.launch(1.0)
            made[id(self)] = (self, queue.busy_until, _who(2))

        def read_in_time(self: ToHost) -> list[float]:
            _, moment, asked_by = made[id(self)]
            queue.wait(moment, asked_by)
            return read(self)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(ToHost, "__init__", made_later)
        monkeypatch.setattr(ToHost, "read", read_in_time)


def _who(depth: int) -> str:
    frame: Any = sys._getframe(depth)
    return f"{frame.f_globals['__name__'].rsplit('.', 1)[-1]}.{frame.f_code.co_name}"
