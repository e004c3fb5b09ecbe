"""Many who ask and one model: they are answered one after the other, and few may wait."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_SIGNALS = 0.5


class Busy(Exception):
    """Nobody else can be answered now; the message says why, to whoever asks."""


class Turns:
    """Has one thread, that of `work`, do what the others ask of it.

    waiting: how many may have a seat beside the one whose turn it is.
    """

    def __init__(self, waiting: int) -> None:
        self._num_seats = 1 + waiting
        self._seats = threading.BoundedSemaphore(self._num_seats)
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._asking = threading.Lock()
        self._has_ended = False

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Held from before a request is read until its reply is written; `Busy` at once where all are taken."""
        if not self._seats.acquire(blocking=False):
            raise Busy(f"busy: {self._num_seats} questions are being answered or wait already; ask again in a while")
        try:
            yield
        finally:
            self._seats.release()

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, once those who asked before have had their turns; `Busy` if they end first."""
        result: Future[T] = Future()
        with self._asking:
            if self._has_ended:
                raise _ending()
            self._asked.put((work, result))
        return result.result()

    def work(self) -> NoReturn:
        """Does what is asked, for as long as no signal's exception ends it; whoever waits then is told `Busy`."""
        try:
            while True:
                # A signal that comes just before the thread begins to wait does not wake it.
                with suppress(Empty):
                    self._do_one(*self._asked.get(timeout=_SECONDS_BETWEEN_SIGNALS))
        finally:
            with self._asking:
                self._has_ended = True
            while not self._asked.empty():
                self._asked.get()[1].set_exception(_ending())

    def wait_for_replies(self, seconds: float) -> None:
        """Returns once nobody has a seat, but after `seconds` for each at most."""
        for _ in range(self._num_seats):
            self._seats.acquire(timeout=seconds)

    @staticmethod
    def _do_one(work: Callable[[], T], result: "Future[T]") -> None:
        try:
            result.set_result(work())
        except Exception as error:  # is that of whoever asked, who gets it
            result.set_exception(error)
            del result  # else error and result refer to each other, and what the failed call had made stays for a while
        except BaseException:
            if not result.done():
                result.set_exception(_ending())
            raise


def _ending() -> Busy:
    return Busy("the server is being ended")
