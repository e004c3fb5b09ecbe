"""What of the host's memory is free, from files as kernels write them."""

from pathlib import Path

import pytest
import torch

from artkv.distributed import single_process
from artkv.errors import UserError
from artkv.frozen.host_blocks import HostBlocks
from artkv.frozen.host_memory import check_room, free_host_bytes

MIB = 2**20


def system(root: Path, available_mib: int, cgroup: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    kib = available_mib * 1024
    (root / "proc/meminfo").write_text(f"MemTotal: 99999 kB\nMemFree: 1 kB\nMemAvailable:  {kib} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def group(folder: Path, names: tuple[str, ...], limit: str, used_mib: int, cache_mib: int) -> None:
    """cache_mib: in part of files that were read once, and mostly of those that were read again, as weights are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used_mib * MIB}\n")
    once, again = cache_mib // 3, cache_mib - cache_mib // 3
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {once * MIB}\n{names[3]} {again * MIB}\n")


SECOND = ("memory.max", "memory.current", "inactive_file", "active_file")
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")


def test_without_groups_it_is_what_the_system_has(tmp_path: Path) -> None:
    assert free_host_bytes(system(tmp_path, 500, "")) == 500 * MIB
    assert free_host_bytes(tmp_path / "nowhere") is None


def test_the_narrowest_group_counts_and_the_cache_of_files_is_free(tmp_path: Path) -> None:
    root = system(tmp_path, 500, "0::/job/step\n")
    base = root / "sys/fs/cgroup"
    group(base / "job/step", SECOND, "max", 90, 0)
    assert free_host_bytes(root) == 500 * MIB
    group(base / "job", SECOND, str(300 * MIB), 200, 150)
    assert free_host_bytes(root) == 250 * MIB
    group(base, SECOND, str(260 * MIB), 250, 40)
    assert free_host_bytes(root) == 50 * MIB


def test_a_containers_group_is_found_where_its_path_is_that_outside(tmp_path: Path) -> None:
    root = system(tmp_path, 500, "0::/kubepods/pod7/abc\n")
    group(root / "sys/fs/cgroup", SECOND, str(100 * MIB), 40, 0)
    assert free_host_bytes(root) == 60 * MIB


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    root = system(tmp_path, 500, "5:cpu,cpuacct:/x\n4:memory:/slurm/job\n")
    group(root / "sys/fs/cgroup/memory/slurm/job", FIRST, str(80 * MIB), 70, 5)
    assert free_host_bytes(root) == 15 * MIB


def test_on_this_machine_it_is_a_number() -> None:
    free = free_host_bytes()
    assert free is not None
    assert free < 2**50


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = system(tmp_path, 1, "")
    check_room(1 * MIB, "blocks", root)
    with pytest.raises(UserError, match=r"^blocks need 5.0 GB of host memory, and 0.0 GB are free on this host"):
        check_room(5 * 10**9, "blocks", root)
    monkeypatch.setattr("artkv.frozen.host_blocks.check_room", lambda needed, what: check_room(needed, what, root))
    read: list[int] = []

    def reader(index: int) -> torch.Tensor:
        read.append(index)
        return torch.zeros(512, 1024)

    blocks = [{"weight": lambda index=index: reader(index)} for index in range(4)]
    with pytest.raises(UserError, match="4 frozen blocks need 0.0 GB of host memory"):
        HostBlocks.build(blocks, "fp32", single_process(torch.device("cpu")))
    assert read == [0]  # whose shapes tell how much is needed
