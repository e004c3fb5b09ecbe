"""One after the other, few waiting, nobody left without an answer at the end."""

import threading
import time
from collections.abc import Callable

import pytest

from artkv.serve.turns import Busy, Turns


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_until(holds: Callable[[], bool]) -> None:
    latest = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < latest
        time.sleep(0.005)


def work_until_interrupted(turns: Turns) -> None:
    with pytest.raises(KeyboardInterrupt):
        turns.work()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_work_is_done_by_one_thread_in_the_order_of_asking() -> None:
    turns, go_on, done = Turns(waiting=3), threading.Event(), []
    worker = start(lambda: work_until_interrupted(turns))

    def job(number: int) -> None:
        go_on.wait(30)
        done.append((number, threading.get_ident()))

    asking = []
    for number in range(4):
        asking.append(start(lambda number=number: turns.do(lambda: job(number))))
        # The first is being done, the others wait.
        wait_until(lambda number=number: turns._asked.qsize() == number)
    assert done == []
    go_on.set()
    for thread in asking:
        thread.join(30)
    assert done == [(number, worker.ident) for number in range(4)]
    with pytest.raises(Busy):
        turns.do(interrupt)


def test_who_asks_gets_the_result_or_the_error() -> None:
    turns = Turns(waiting=0)
    start(lambda: work_until_interrupted(turns))
    assert turns.do(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        turns.do(lambda: 1 // 0)
    assert turns.do(lambda: 8) == 8
    with pytest.raises(Busy):
        turns.do(interrupt)


def test_only_so_many_have_a_seat() -> None:
    turns = Turns(waiting=1)
    with turns.seat():
        with turns.seat(), pytest.raises(Busy, match="2 questions are being answered or wait already"), turns.seat():
            pass
        with turns.seat():  # is free again
            pass


def test_at_the_end_whoever_waits_is_told_so_and_nobody_else_is_taken() -> None:
    turns, go_on, told = Turns(waiting=3), threading.Event(), []

    def ask(work: Callable[[], object]) -> None:
        with pytest.raises(Busy, match="the server is being ended"):
            turns.do(work)
        told.append(work)

    def first() -> None:
        go_on.wait(30)
        raise KeyboardInterrupt

    worker = start(lambda: work_until_interrupted(turns))
    asking = [start(lambda: ask(first))]
    wait_until(lambda: turns._asked.qsize() == 0)
    asking += [start(lambda: ask(lambda: pytest.fail("was done"))) for _ in range(2)]
    wait_until(lambda: turns._asked.qsize() == 2)
    go_on.set()
    for thread in [worker, *asking]:
        thread.join(30)
    assert len(told) == 3
    with pytest.raises(Busy, match="the server is being ended"):
        turns.do(lambda: None)


def test_replies_are_waited_for_but_not_for_ever() -> None:
    turns = Turns(waiting=0)
    began = time.monotonic()
    with turns.seat():
        turns.wait_for_replies(0.05)
    assert 0.05 <= time.monotonic() - began < 5
