"""How much of the host's memory this process may still take.

Frozen weights that stream are page-locked host memory: 5 GB of BLIP2-OPT-2.7b's OPT. Where there is not so much the
kernel kills the process in the middle of it, without a word.
"""

import gc
from pathlib import Path
from typing import NamedTuple

from artkv.errors import UserError

_GB = 1e9
_ROOT = Path("/")


class _GroupFiles(NamedTuple):
    """Files of a control group, and what of its `memory.stat` the kernel gives up for others.

    That is the cache of files, of weights that were just read too.
    """

    limit: str
    usage: str
    reclaimable: tuple[str, ...]


_SECOND = _GroupFiles("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
_FIRST = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def free_host_bytes(root: Path = _ROOT) -> int | None:
    """What the system has available, or a control group of this process (a job's, a container's) less; None: unknown.

    The cache of files counts as free. root: of the file system that holds /proc and /sys.
    """
    known = [free for free in (_available(root), *_left_in_groups(root)) if free is not None]
    return min(known, default=None)


def check_room(needed: int, what: str, root: Path = _ROOT) -> None:
    """Raises `UserError` unless so many bytes of host memory are free. what: they are for."""
    free = free_host_bytes(root)
    if free is not None and needed > free:
        gc.collect()  # blocks of a model that nobody uses any more may be in reference cycles
        free = free_host_bytes(root)
    if free is not None and needed > free:
        raise UserError(
            f"{what} need {needed / _GB:.1f} GB of host memory, and {free / _GB:.1f} GB are free on this host (of the "
            "system, or of the job's or container's limit); give it more, set frozen.storage: int8, which takes half, "
            "or frozen.opt and frozen.vit: resident with a lower training.batch_size"
        )


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _left_in_groups(root: Path) -> list[int | None]:
    """Of each of this process's control groups that has a limit, from its own up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            base, files = root / "sys/fs/cgroup", _SECOND
        elif "memory" in controllers.split(","):
            base, files = root / "sys/fs/cgroup/memory", _FIRST
        else:
            continue
        # In a container the path may be that outside of it; what is there of it are the folders above.
        group = base / path.strip().lstrip("/")
        found += [_left(folder, files) for folder in (group, *group.parents) if folder.is_relative_to(base)]
    return found


def _left(folder: Path, files: _GroupFiles) -> int | None:
    try:
        most, used = int((folder / files.limit).read_text()), int((folder / files.usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most - used + sum(int(statistics.get(name, 0)) for name in files.reclaimable)
    except (OSError, ValueError):  # no such group, no limit ("max")
        return None
