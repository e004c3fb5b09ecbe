"""Processes that do a quickstart's parts beside one another, and import what they need once for all of them.

A start of `artkv` takes seconds for its imports, which is long beside the parts of a small world. So a lane is one
process that does several parts, one after the other. On few cores two lanes of half the threads each are quicker than
two threads or ranks for each part: small matrices leave a second thread little to do.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ParamSpec

from typing_extensions import Self

from artkv.errors import RunFailed
from artkv.parent_process import end_with_parent
from artkv.training.preemption import heeded

P = ParamSpec("P")

# What asks a run to stop.
_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Lane:
    """A process that does what it is given in turn; what that raises, `wait` raises here.

    threads: that it computes with; a user's OMP_NUM_THREADS comes first. log: a file that all that it prints is added
    to; None: where this process prints.
    """

    def __init__(self, threads: int, log: Path | None = None) -> None:
        # Spawned and not forked: this process has threads, and a fork cannot use a GPU that was looked at before.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (threads, log))
        self._log = log
        self._begun: tuple[str, Future[object]] | None = None
        self._number = self._pool.submit(os.getpid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Waits for the process; one that still works while another has failed is asked to stop, and may save."""
        if error is not None:
            self.ask_to_stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, what: str, action: Callable[P, object], *given: P.args, **named: P.kwargs) -> None:
        """Lets the process do a part, an importable function of picklable things; what: the part's name in messages."""
        self._begun = what, self._pool.submit(action, *given, **named)

    @property
    def begun(self) -> tuple[str, Future[object]]:
        """The part that was begun last."""
        if self._begun is None:
            raise RuntimeError("nothing was begun")
        return self._begun

    def result(self) -> Any:
        """What the part that was begun last returned, once it is done; raises what it raised."""
        what, future = self.begun
        try:
            return future.result()
        except BrokenProcessPool:
            raise RunFailed(f"{what}: its process was ended before it was done; start again to go on") from None
        except Exception:
            self._show_log()
            raise

    def ask_to_stop(self) -> None:
        """SIGTERM, upon which a training saves what it has."""
        try:
            os.kill(self._number.result(), signal.SIGTERM)
        except (BrokenProcessPool, ProcessLookupError):  # it has ended
            return

    def _show_log(self) -> None:
        """What the process printed, where nobody has seen it."""
        if self._log is not None and self._log.is_file():
            print(self._log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr, flush=True)


def results(*lanes: Lane) -> list[Any]:
    """What the parts that were begun last returned; raises as soon as one of them has."""
    done, _ = wait([lane.begun[1] for lane in lanes], return_when=FIRST_EXCEPTION)
    failed = [lane for lane in lanes if lane.begun[1] in done and lane.begun[1].exception() is not None]
    return [lane.result() for lane in (*failed, *lanes)][len(failed) :]


@contextmanager
def two_lanes(log: Path) -> Iterator[tuple[Lane, Lane]]:
    """Two lanes that share the cores; the second prints into `log`. What asks this process to stop asks them."""
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    with ExitStack() as stack:
        first, second = (stack.enter_context(Lane(threads, one)) for one in (None, log))

        def pass_on(_: int, __: FrameType | None) -> None:
            for lane in (first, second):
                lane.ask_to_stop()

        for number in heeded(*_ASKING):
            stack.callback(signal.signal, number, signal.signal(number, pass_on))
        yield first, second


def _prepare(threads: int, log: Path | None) -> None:
    """Of a new process, before it imports torch."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's goes to the process above too, which asks to stop
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if log is not None:
        with log.open("ab") as file:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file.fileno(), stream.fileno())
