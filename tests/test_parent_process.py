"""Processes whose parent is killed, or is alive."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection, wait

import pytest

from artkv.parent_process import end_with_parent

SECONDS = 120


def wait_for_ever(started: Connection) -> None:
    end_with_parent()
    started.send(os.getpid())
    while True:
        signal.pause()


def start_and_wait(started: Connection, method: str) -> None:
    child = multiprocessing.get_context(method).Process(target=wait_for_ever, args=(started,))
    child.start()
    child.join()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_ends_when_its_parent_is_killed(method: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    parent = multiprocessing.get_context("spawn").Process(target=start_and_wait, args=(theirs, method))
    parent.start()
    theirs.close()
    assert ours.poll(SECONDS)
    child = os.pidfd_open(ours.recv())
    try:
        assert not wait([child], timeout=0.2)  # it lives for as long as its parent does
        parent.kill()
        assert wait([child], timeout=SECONDS)
    finally:
        os.close(child)
        parent.join()


def test_a_process_without_such_a_parent_is_told() -> None:
    with pytest.raises(RuntimeError, match="not started by multiprocessing"):
        end_with_parent()
