"""Moments of what computes, which take no waiting to note."""

import time
from collections.abc import Callable
from typing import Any

import torch


class DeviceTime:
    """Notes moments, and tells the seconds between two of them.

    On CUDA a moment is when the device's queue gets to where it was noted, however far ahead the host is; elsewhere it
    is the host's. `now` gives the host's seconds; tests replace it.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.is_queued = device.type == "cuda"
        self.now = now

    def mark(self) -> Any:
        """This moment, for `seconds`."""
        if not self.is_queued:
            return self.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, began: Any, ended: Any) -> float:
        """The seconds between two moments; waits until the device has got to the later one."""
        if not self.is_queued:
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000
