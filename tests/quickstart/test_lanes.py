"""Processes beside one another: what they return, raise and print, and what becomes of them when one fails."""

import os
import pickle
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from artkv.errors import Preempted, RunFailed, UserError
from artkv.quickstart.lanes import results, two_lanes

SECONDS = 120


def its_threads() -> tuple[int, str]:
    print("printed")
    print("told", file=sys.stderr)
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def refuse() -> None:
    raise UserError("no such thing; give another", on_all_ranks=True)


def leave() -> None:
    os._exit(7)


def wait_to_be_asked(started: Path) -> None:
    """As a training does: saves, and tells where it stopped."""
    asked = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    started.touch()
    while not asked:
        time.sleep(0.01)
    (started.parent / "saved").touch()
    raise Preempted(12, "SIGTERM")


def ask_above(started: Path, number: signal.Signals) -> None:
    """Asks the process above to stop, once the other lane is at work."""
    while not started.exists():
        time.sleep(0.01)
    os.kill(os.getppid(), number)
    signal.pause()


def fail_late(started: Path) -> None:
    while not started.exists():
        time.sleep(0.01)
    raise RunFailed("the loss is nan")


def test_a_lane_keeps_its_process_and_shares_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = tmp_path / "beside.log"
    before = signal.getsignal(signal.SIGTERM)
    with two_lanes(log) as lanes:
        found = []
        for _ in range(2):
            for lane in lanes:
                lane.begin("threads", its_threads)
            found.append(results(*lanes))
    assert found[0] == found[1]
    (first, threads), (second, its) = found[0]
    assert len({first, second, os.getpid()}) == 3
    assert threads == its == str(max(1, len(os.sched_getaffinity(0)) // 2))
    # The second has a file for what it prints.
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("printed\n" * 2, "told\n" * 2)
    assert sorted(log.read_text().split()) == ["printed", "printed", "told", "told"]
    assert signal.getsignal(signal.SIGTERM) == before  # whatever a test before this one left there


def side_by_side(folder: Path, *parts: tuple[Any, ...]) -> None:
    """Does the parts, one a lane."""
    with two_lanes(folder / "beside.log") as lanes:
        for lane, (action, *given) in zip(lanes, parts, strict=False):
            lane.begin("the part", action, *given)
        results(*lanes[: len(parts)])


def test_what_one_raises_is_raised_and_the_other_is_asked_to_stop(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with pytest.raises(RunFailed, match="the loss is nan"):
        side_by_side(tmp_path, (wait_to_be_asked, started), (fail_late, started))
    assert (tmp_path / "saved").exists()


def test_errors_come_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give another") as error:
        side_by_side(tmp_path, (refuse,))
    assert error.value.on_all_ranks
    with pytest.raises(RunFailed, match="the part: its process was ended before it was done"):
        side_by_side(tmp_path, (leave,))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_asks_this_process_to_stop_asks_the_lanes(tmp_path: Path, number: signal.Signals) -> None:
    started = tmp_path / "started"
    before = signal.signal(number, lambda *_: None)
    try:
        with pytest.raises((Preempted, RunFailed)):
            side_by_side(tmp_path, (wait_to_be_asked, started), (ask_above, started, number))
    finally:
        signal.signal(number, before)
    assert (tmp_path / "saved").exists()


def test_where_a_training_stopped_is_told_across_processes() -> None:
    stop = pickle.loads(pickle.dumps(Preempted(12, "SIGTERM")))
    assert (stop.step, stop.reason, str(stop)) == (12, "SIGTERM", "stopped by SIGTERM after step 12")


def tell_and_wait(started: Path) -> None:
    started.write_text(str(os.getpid()))
    signal.pause()


def test_a_killed_process_leaves_no_lane(tmp_path: Path) -> None:
    told = [tmp_path / "first", tmp_path / "second"]
    above = get_context("spawn").Process(target=side_by_side, args=(tmp_path, *((tell_and_wait, one) for one in told)))
    above.start()
    lanes = []
    try:
        deadline = time.monotonic() + SECONDS
        while not all(one.is_file() and one.read_text() for one in told):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lanes = [os.pidfd_open(int(one.read_text())) for one in told]
        above.kill()
        for lane in lanes:
            assert wait([lane], timeout=SECONDS)
    finally:
        above.kill()
        above.join()
        for lane in lanes:
            os.close(lane)
