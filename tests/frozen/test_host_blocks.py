"""One copy of the masters a node, in memory that cannot outlive its processes."""

import os
import re
import signal
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.frozen.host_blocks import HostBlocks

ROOT = Path(__file__).resolve().parents[2]

# Two ranks build the same masters. `fail` names the rank that goes wrong, and how.
RANK_SCRIPT = """
import os, sys, time, torch
import torch.distributed as dist
from artkv.distributed import World
from artkv.errors import UserError
from artkv.frozen.host_blocks import HostBlocks

rank, store, fail = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
world = World(rank, rank, 2, torch.device("cpu"))

def read(block):
    if fail == "reader":
        raise UserError("weights.safetensors: truncated; fetch it again")
    assert rank == 0, "only the node's first rank reads"
    return torch.full((1024, 1024), float(block + 1))

if fail == "open" and rank == 1:
    real_open = os.open
    def refuse(path, *rest):
        if str(path).startswith("/proc/"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *rest)
    os.open = refuse
try:
    host = HostBlocks.build([{"weight": lambda b=b: read(b)} for b in range(4)], "bf16", world)
except Exception as error:
    print("raised", type(error).__name__, error)
    sys.exit(1)
print("digest", host.digest())
dist.barrier()
lines = open("/proc/self/smaps").read().split("\\n")
at = next(n for n, line in enumerate(lines) if "artkv-frozen-blocks" in line)
print("inode", lines[at].split()[3], lines[at].split()[4])
sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[at + 1 : at + 10] if line.endswith("kB")}
print("kB", sizes["Rss"], sizes["Pss"])
dist.barrier()
dist.destroy_process_group()
"""


def run_two_ranks(tmp_path: Path, fail: str = "nothing") -> list[dict[str, str]]:
    """What each rank printed, by first word; all have ended when this returns."""
    command = [sys.executable, "-c", RANK_SCRIPT]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), fail], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [dict(line.split(" ", 1) for line in output.splitlines() if " " in line) for output in outputs]


def left_of(inode: str, shared_memory: set[str]) -> set[str]:
    """What is new in /dev/shm, and every process that still holds the masters of this inode."""
    left = set(os.listdir("/dev/shm")) - shared_memory
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        if any("artkv-frozen-blocks" in line and line.split()[4] == inode for line in lines):
            left.add(maps.parent.name)
    return left


def test_two_ranks_share_one_copy(tmp_path: Path) -> None:
    first, second = run_two_ranks(tmp_path)
    assert first["digest"] == second["digest"]
    assert first["inode"] == second["inode"]
    for rank in (first, second):
        resident, proportional = map(int, rank["kB"].split())
        assert resident == 4 * 1024 * 1024 * 2 / 1024  # four blocks of 2 MiB in bf16
        assert proportional == resident / 2


def test_all_ranks_fail_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for rank in run_two_ranks(tmp_path / "a", fail="reader"):
        assert rank["raised"] == "UserError [rank 0] weights.safetensors: truncated; fetch it again"
    first, second = run_two_ranks(tmp_path / "b", fail="open")
    assert re.match(r"RunFailed rank 1 failed: RuntimeError: /proc/\d+/fd/\d+: .*Permission denied", first["raised"])
    assert re.match(r"RuntimeError /proc/\d+/fd/\d+: .*start a node's ranks as one user", second["raised"])


@pytest.mark.system
@pytest.mark.parametrize("moment", [2, 4])
def test_a_kill_leaves_nothing(moment: int) -> None:
    """SIGKILL after packing and before another rank could map it, then after that; and the next run works."""
    script = f"""
import os, signal, torch
from artkv.distributed import World
from artkv.frozen.host_blocks import HostBlocks
meetings = []
class Killed(World):
    def _exchange(self, value):
        meetings.append(value)
        if len(meetings) == {moment}:
            print(*(line.split()[4] for line in open("/proc/self/maps") if "artkv-frozen-blocks" in line), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return [value]
world = Killed(0, 0, 1, torch.device("cpu"))
HostBlocks.build([{{"weight": lambda: torch.ones(1024, 1024)}}], "bf16", world)
"""
    before = set(os.listdir("/dev/shm"))
    for _ in range(2):
        command = [sys.executable, "-c", script]
        killed = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
        (inode,) = killed.stdout.split()
        assert left_of(inode, before) == set()


def test_each_tensor_is_read_once_and_let_go() -> None:
    alive: list[weakref.ref] = []
    max_alive = []

    def read(block: int, name: str) -> Tensor:
        max_alive.append(sum(ref() is not None for ref in alive))
        tensor = torch.full((3, 5) if name == "weight" else (3,), float(block))
        alive.append(weakref.ref(tensor))
        return tensor

    blocks = [{name: partial(read, block, name) for name in ("weight", "bias")} for block in range(4)]
    host = HostBlocks.build(blocks, "bf16", single_process())
    assert max_alive == [0, 1, 0, 0, 0, 0, 0, 0]  # block 0 as a whole, then one tensor at a time
    assert sum(ref() is not None for ref in alive) == 0
    flat = torch.empty(host.layout.slot_elements)
    for block, packed in enumerate(host.packed):
        assert packed.data_ptr() % 4096 == 0
        host.layout.decode(packed, flat)
        assert all(bool((parameter == block).all()) for parameter in host.layout.slot_parameters(flat))


def test_blocks_that_differ_are_refused() -> None:
    def block(**shapes: tuple[int, ...]) -> dict:
        return {name: partial(torch.zeros, shape) for name, shape in shapes.items()}

    with pytest.raises(ValueError, match="block 1: weight has shape"):
        HostBlocks.build([block(weight=(2, 2)), block(weight=(2, 3))], "bf16", single_process())
    with pytest.raises(ValueError, match=r"block 1: blocks differ in their tensors: \['bias'\]"):
        HostBlocks.build([block(weight=(2, 2)), block(weight=(2, 2), bias=(2,))], "bf16", single_process())
    with pytest.raises(ValueError, match="no blocks"):
        HostBlocks.build([], "bf16", single_process())


def test_a_users_error_of_a_reader_stays_one() -> None:
    def read() -> Tensor:
        raise UserError("the file is damaged")

    with pytest.raises(UserError, match="the file is damaged"):
        HostBlocks.build([{"weight": read}], "bf16", single_process())


@pytest.mark.parametrize("code", [0, 2])
def test_pinning_registers_the_buffer_itself(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[Any, ...]] = []

    class Cudart:
        def cudaHostRegister(self, *arguments: int) -> int:
            calls.append(("register", *arguments))
            return code

        def cudaHostUnregister(self, *arguments: int) -> int:
            calls.append(("unregister", *arguments))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    host = HostBlocks.build([{"weight": lambda: torch.ones(100, 100)}] * 3, "bf16", single_process())
    address = host.packed[0].data_ptr()
    host.pin()
    assert host.num_bytes == 3 * 20480  # 20000 bytes in whole pages; no power of two
    assert host.is_pinned == (code == 0)
    assert ("cannot be page-locked" in caplog.text) == (code != 0)
    host.pin()
    del host
    registered = ("register", address, 3 * 20480, 1)
    assert calls == ([registered, ("unregister", address)] if code == 0 else [registered] * 2)
