"""The processes of a supervised training: its launcher, and the ranks wherever they run."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from artkv.errors import RunFailed
from artkv.run_folder.heartbeat import Beat
from artkv.run_folder.processes import descendants, describe, is_zombie, process_start

_PR_SET_CHILD_SUBREAPER = 36
# Seconds for Slurm or ssh to pass on a signal, and for the launcher to notice that its ranks are gone.
_PATIENCE = 10.0
# Seconds for what was killed to be gone: a large process gives back its memory, and the GPU's.
_SECONDS_TO_END = 60.0


class Launched:
    """A launcher in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone."""

    def __init__(self, command: Sequence[str]) -> None:
        _adopt_orphans()
        self.process = subprocess.Popen(command, start_new_session=True)

    def exit_code(self) -> int | None:
        """None while it lives."""
        return self.process.poll()

    def send(self, number: signal.Signals) -> None:
        """To the launcher, which passes it on."""
        self.process.send_signal(number)

    def end(self, beats: Mapping[int, Beat]) -> None:
        """Kills all ranks and the launcher, and returns when those that can be seen from here are gone.

        Raises `RunFailed` where one of them does not go: it waits in the system, which looks at no signal then.
        """
        signal_ranks(signal.SIGKILL, beats)
        if any(not beat.is_here for beat in beats.values()):  # srun ends when its tasks are gone, wherever they are
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_PATIENCE)
        began, pause = time.monotonic(), 0.02
        while left := self._left():
            if time.monotonic() - began > _SECONDS_TO_END:
                raise RunFailed(
                    f"{', '.join(map(describe, left))}: not gone {_SECONDS_TO_END:.0f} s after SIGKILL; in state D a "
                    "process waits for a disk, a file server or a GPU (dmesg may say which); start again when it is "
                    "gone"
                )
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)  # each look reads all of /proc

    def _left(self) -> list[int]:
        """Descendants that live. Those whose parent died are this process's children now, and have to be buried."""
        for pid in descendants(os.getpid(), with_zombies=True):
            if is_zombie(pid) and pid != self.process.pid:
                with suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)
        found = descendants(os.getpid())
        if process_start(self.process.pid) is not None and self.process.pid not in found:
            found.append(self.process.pid)
        return found


def signal_ranks(number: signal.Signals, beats: Mapping[int, Beat]) -> None:
    """Sends a signal to all ranks: here directly, elsewhere through Slurm or ssh; who is gone is passed over."""
    name = number.name.removeprefix("SIG")
    steps = {beat.slurm_step for beat in beats.values() if beat.slurm_step is not None and not beat.is_here}
    for step in sorted(steps):
        _run(["scancel", f"--signal={name}", step])
    by_host: dict[str, list[Beat]] = {}
    for beat in beats.values():
        if beat.lives_here:
            with suppress(OSError):
                os.kill(beat.pid, number)
        elif not beat.is_here and beat.slurm_step is None:
            by_host.setdefault(beat.host, []).append(beat)
    for host, there in by_host.items():
        # Field 22 of stat is the process's start: its number may be another's by now.
        tests = [
            f'[ "$(cut -d" " -f22 /proc/{beat.pid}/stat)" = {beat.pid_start} ] && kill -{name} {beat.pid}'
            for beat in there
        ]
        _run(["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host, f"sh -c {shlex.quote('; '.join(tests))}"])


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"artkv supervise: {shlex.join(command)}: {error}", file=sys.stderr)


def _adopt_orphans() -> None:
    """Makes processes whose parent dies children of this one, where Linux is, so that none gets lost."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
