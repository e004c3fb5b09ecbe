"""Which process on which machine: what can be known of another one by its number."""

import os
import socket
from contextlib import suppress
from pathlib import Path


def machine() -> str:
    """Host name, boot and process namespace; where all are the same, a number means the same process."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with suppress(OSError):
            parts.append(read())
    return " ".join(parts)


def process_start(pid: int) -> int | None:
    """When a process of this machine began, in ticks since boot; None if it is dead, or not to be seen.

    Processes of other users are hidden where /proc is mounted so (hidepid); see `is_anothers`.
    """
    fields = _fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_anothers(pid: int) -> bool:
    """Whether there is a process of this number on this machine that another user's is, and not to be signalled."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):  # a lock that somebody has damaged may hold any number
        pass
    return False


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine stands still since somebody sent it SIGSTOP, or a debugger holds it."""
    fields = _fields(pid)
    return fields is not None and fields[0] in "Tt"


def describe(pid: int) -> str:
    """A process of this machine as messages name it, such as `process 4711 (python, state D)`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return f"process {pid}"
    name = text[text.find("(") + 1 : text.rfind(")")]
    return f"process {pid} ({name}, state {text.rpartition(')')[2].split()[0]})"


def is_zombie(pid: int) -> bool:
    """Whether a process of this machine has ended and its parent has not asked how."""
    fields = _fields(pid)
    return fields is not None and fields[0] == "Z"


def descendants(pid: int, with_zombies: bool = False) -> list[int]:
    """All processes below one of this machine, the nearest first; empty where this is no Linux."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal() and (fields := _fields(int(name))) is not None:
                if fields[0] in "ZX" and not with_zombies:
                    continue
                children.setdefault(int(fields[1]), []).append(int(name))
    found, above = [], [pid]
    while above:
        below = [child for parent in above for child in children.get(parent, [])]
        found += below
        above = below
    return found


def _fields(pid: int) -> list[str] | None:
    """What /proc/PID/stat has after the name, which may hold anything: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
