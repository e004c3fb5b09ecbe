"""Processes that take turns, so that figures compared with each other were measured minutes, not hours, apart.

Each contestant runs its own, unshortened training loop in a process of its own (its peak of memory is then its own),
and stands still at the boundary between two steps while another has its turn. A turn times whole cycles of that loop,
waiting for data and everything else between steps included.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from artkv.heavy_imports import heavy_imports

_START_TIMEOUT_SECONDS = 600.0
_LAST_LINES = 15


class EndOfTurns(BaseException):
    """Leaves a training loop from inside; no library's `except Exception` catches it."""


@dataclass
class Stand:
    """A contestant's place inside its own process: called at the boundary before each step.

    actions: what else can be asked of it there, by name, such as its losses before the first step.
    questions_per_step: told by the loop with each step.
    """

    connection: Connection
    actions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _untimed: int = 0
    _timed: int = 0
    _questions: int = 0
    _began: float = 0.0
    _counts: bool = False
    _counter: Any = None
    _is_first: bool = True

    def boundary(self, questions_of_step: int) -> None:
        """Ends a turn whose steps are over, and waits for the next one.

        questions_of_step: those of the step that begins when this returns.
        """
        if self._is_first:
            self._is_first = False
            self.connection.send(("ready", resident_bytes()))
        elif self._counter is not None:
            self.connection.send(("done", (self._counter.result(), self._questions)))
            self._counter = None
        elif self._untimed:
            self._untimed -= 1
            if not self._untimed:
                self._began, self._questions = time.perf_counter(), 0
        elif self._timed:
            self._timed -= 1
            if not self._timed:
                self.connection.send(("done", (time.perf_counter() - self._began, self._questions)))
        while not self._untimed and not self._timed and self._counter is None:
            self._obey(*self.connection.recv())
        self._questions += questions_of_step

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around the step itself, so that something can be counted in it."""
        if self._counter is None:
            yield
        else:
            with self._counter:
                yield

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Around what is no part of a step; here a turn times it with the rest, as it times whole cycles."""
        yield

    def _obey(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "run":
            self._untimed, self._timed = arguments
            self._questions, self._began = 0, time.perf_counter()
        elif name == "count":
            module, counter = arguments[0].split(":")
            self._counter, self._questions = getattr(importlib.import_module(module), counter)(), 0
        elif name == "end":
            raise EndOfTurns
        else:
            self.connection.send(("done", self.actions[name](*arguments)))


class Contestant:
    """A contestant as the conductor sees it.

    target: `module:function`, called with its stand and the arguments. Every method raises `RuntimeError`, with the
    end of the contestant's log, if it died.
    """

    def __init__(
        self, name: str, target: str, arguments: tuple[Any, ...], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.start_bytes: int | None = None  # resident when it first stood there
        self._log = log
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_main, args=(target, theirs, arguments, log), name=name)
        # Before it starts: OpenMP reads its settings once, when the conductor's own imports are repeated in there.
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def wait_until_ready(self) -> None:
        """Returns when it stands before its first step."""
        self.start_bytes = self._receive("ready", _START_TIMEOUT_SECONDS)

    def run(self, untimed: int, timed: int) -> tuple[float, int]:
        """Seconds and questions of `timed` steps, after `untimed` ones that empty what was fetched in the pause."""
        if untimed < 1 or timed < 1:
            raise ValueError("a turn has at least one untimed and one timed step")
        self.begin(untimed, timed)
        return self.finish()

    def begin(self, untimed: int, timed: int) -> None:
        """Starts a turn of `run` without waiting for its end: for several that run together."""
        self._connection.send(("run", (untimed, timed)))

    def begin_count(self, counter: str = "flop_count:StepFlops") -> None:
        """Starts the next step inside a context manager, `module:class`, whose `result()` is wanted."""
        self._connection.send(("count", (counter,)))

    def finish(self) -> Any:
        """What the turn or the count that was begun gave."""
        return self._receive("done", None)

    def count(self) -> tuple[int, int]:
        """FLOPs and questions of its next step."""
        self.begin_count()
        return self.finish()

    def ask(self, action: str, *arguments: Any) -> Any:
        """What `Stand.actions` says."""
        self._connection.send((action, arguments))
        return self._receive("done", None)

    def close(self) -> None:
        """Ends the process, by itself if it still listens."""
        with contextlib.suppress(OSError):
            self._connection.send(("end", ()))
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, expected: str, timeout_seconds: float | None) -> Any:
        try:
            if not self._connection.poll(timeout_seconds):
                raise RuntimeError(
                    f"{self.name}: not ready after {timeout_seconds:.0f} s; {self._log} ends:\n{self._end()}"
                )
            kind, value = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} died; {self._log} ends:\n{self._end()}") from None
        if kind != expected:
            raise RuntimeError(f"{self.name}: {kind}: {value}")
        return value

    def _end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


def resident_bytes() -> int | None:
    """What this process holds in memory now; None where there is no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.is_file() else None


def _main(target: str, connection: Connection, arguments: tuple[Any, ...], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
        try:
            with heavy_imports():
                module, function = target.split(":")
                run = getattr(importlib.import_module(module), function)
            run(Stand(connection), *arguments)
        except EndOfTurns:
            pass
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            with contextlib.suppress(OSError):
                connection.send(("failed", f"{type(error).__name__}: {error}"))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Loaders' workers and DeepSpeed's threads may hang at a normal exit.
            os._exit(0)
