"""Peak memory against allocations of known size, in processes of their own."""

import subprocess
import sys

import torch

from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes

MIB = 2**20


def test_peak_grows_by_what_was_allocated_and_stays() -> None:
    # Fresh process: the peak of this one may lie far above what it holds now.
    program = """
from artkv.monitoring.memory import peak_host_bytes
before = peak_host_bytes()
block = bytearray(300 * 2**20)
block[::4096] = bytes(len(block[::4096])).replace(b"\\0", b"x")
del block
print(peak_host_bytes() - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    # The interpreter and torch have freed pages that are used first: up to 60 MiB of slack.
    assert 240 * MIB < grown < 330 * MIB


def test_peak_is_this_process_not_its_launcher() -> None:
    """ru_maxrss of a child starts at its launcher's peak; what is reported must not."""
    block = bytearray(b"x") * (1000 * MIB)
    program = "from artkv.monitoring.memory import peak_host_bytes; print(peak_host_bytes())"
    child = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert len(block) < peak_host_bytes()
    assert child < 900 * MIB  # Python with torch imported: 520 MiB measured


def test_device_peak_is_zero_without_cuda() -> None:
    if not torch.cuda.is_available():
        assert peak_device_bytes() == 0
        return
    block = torch.zeros(8 * MIB, dtype=torch.uint8, device="cuda")
    assert peak_device_bytes() >= block.nbytes
