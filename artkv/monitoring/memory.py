"""Peaks of memory, in bytes."""

import resource
import sys
from pathlib import Path

import torch


def peak_host_bytes() -> int:
    """The most resident memory this process has had, memory-mapped and shared pages included.

    On Linux it is VmHWM, because `ru_maxrss` is not this process's own: it starts at the peak of the
    process that launched it, a test runner or a DeepSpeed launcher.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int:
    """The most memory PyTorch has allocated on this process's CUDA device; 0 without CUDA.

    Allocated, not reserved: what the run needs, not what the caching allocator holds.
    """
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
