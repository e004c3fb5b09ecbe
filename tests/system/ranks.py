"""Ranks as srun starts them, with nothing above them, but forked from a process that has imported what they need.

A rank's imports take eight times the CPU time of its run on the tiny world. Where a test is about what ranks do, and
not about how they are started, it need not wait for them: its ranks are forked and then told their place, their
arguments and where to print. Everything else is `artkv` as the console script calls it.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from artkv.cli import main

SECONDS = 300  # on a machine busy with other work; seconds where it is not
_FORKS = multiprocessing.get_context("forkserver")
_IMPORTED = ["artkv.training.run", "artkv.feature_cache", "deepspeed.runtime.zero.stage_1_and_2", "tests.system.ranks"]

Main = Callable[[Sequence[str]], int]


def free_port() -> str:
    """A TCP port that nothing listens on; each start takes one of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


class Ranks:
    """Processes of one run. logs: a file for all that each rank prints. processes: by rank."""

    def __init__(self, arguments: Sequence[str], logs: Path, num_ranks: int, main: Main) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank{rank}.txt" for rank in range(num_ranks)]
        places = [{}] if num_ranks == 1 else _places(num_ranks)
        _FORKS.set_forkserver_preload(_IMPORTED)
        self.processes = [
            _FORKS.Process(target=_run, args=(main, list(arguments), dict(os.environ) | place, log))
            for place, log in zip(places, self.logs, strict=True)
        ]
        for process in self.processes:
            process.start()

    def send(self, number: signal.Signals, ranks: Sequence[int] = (0, 1)) -> None:
        """To the whole groups of these ranks, their workers included."""
        for rank in ranks:
            os.killpg(self.pid(rank), number)

    def pid(self, rank: int) -> int:
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def all_live(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def exit_codes(self) -> list[int | None]:
        """Waits for their ends; -15 is an end by signal 15, as for subprocess, None one that does not come."""
        for process in self.processes:
            process.join(SECONDS)
        return [process.exitcode for process in self.processes]

    def told(self) -> str:
        """What the ranks have printed, one after the other."""
        return "".join(log.read_text() for log in self.logs if log.exists())

    def end(self) -> None:
        """Kills what is left of them."""
        for process in self.processes:
            if process.pid is None:
                continue  # never started; group 0 would be that of these tests themselves
            process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


@contextmanager
def started(arguments: Sequence[str], logs: Path, num_ranks: int = 2, main: Main = main) -> Iterator[Ranks]:
    """Ranks with the arguments of `artkv`, or of another `main`; whatever is left of them ends with the block."""
    ranks = Ranks(arguments, logs, num_ranks, main)
    try:
        yield ranks
    finally:
        ranks.end()


def run_to_end(arguments: Sequence[str], logs: Path, num_ranks: int = 2, main: Main = main) -> str:
    """Runs ranks that must succeed, and returns what they printed."""
    with started(arguments, logs, num_ranks, main) as ranks:
        assert ranks.exit_codes() == [0] * num_ranks, ranks.told()
        return ranks.told()


def _places(num_ranks: int) -> list[dict[str, str]]:
    meeting = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank)} | meeting for rank in range(num_ranks)]


def _run(main: Main, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    os.setsid()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["artkv", *arguments]
    sys.exit(main(arguments))
