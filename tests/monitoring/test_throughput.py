"""Rates on a clock that the test turns."""

import contextlib
from collections.abc import Iterator

import pytest

from artkv.monitoring.throughput import StepClock


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_rates_median_and_longest_step_of_the_window() -> None:
    now = Clock()
    clock = StepClock(now)
    for seconds, questions, paintings in [(1.0, 16, 4), (2.0, 12, 3), (6.0, 8, 2)]:
        now.seconds += seconds
        clock.step_done(questions, paintings)
    assert clock.read() == pytest.approx(
        {
            "questions_per_second": 4.0,
            "paintings_per_second": 1.0,
            "step_seconds": 2.0,
            "step_seconds_max": 6.0,
            "data_wait_share": 0.0,
        }
    )
    assert clock.read() == {}
    now.seconds += 0.5
    clock.step_done(2, 1)
    assert clock.read()["questions_per_second"] == pytest.approx(4.0)


def test_pauses_count_for_no_step() -> None:
    now = Clock()
    clock = StepClock(now)
    now.seconds += 1
    clock.step_done(10, 1)
    with clock.paused():  # between steps
        now.seconds += 50
    now.seconds += 0.25
    with clock.paused():  # and within one; nested ones are not taken off twice
        now.seconds += 10
        with clock.paused():
            now.seconds += 10
    now.seconds += 0.75
    clock.step_done(10, 1)
    assert clock.read() == pytest.approx(
        {
            "questions_per_second": 10.0,
            "paintings_per_second": 1.0,
            "step_seconds": 1.0,
            "step_seconds_max": 1.0,
            "data_wait_share": 0.0,
        }
    )
    now.seconds += 3
    clock.step_done(3, 3)  # the pauses before were used up
    assert clock.read()["step_seconds"] == pytest.approx(3.0)


def test_a_pause_ended_by_an_error_still_ends() -> None:
    now = Clock()
    clock = StepClock(now)
    with contextlib.suppress(RuntimeError), clock.paused():
        now.seconds += 5
        raise RuntimeError
    now.seconds += 1
    clock.step_done(1, 1)
    assert clock.read()["step_seconds"] == pytest.approx(1.0)


def test_share_of_waiting_for_data() -> None:
    now = Clock()
    clock = StepClock(now)

    def batches() -> Iterator[str]:
        for batch in ("a", "b", "c"):
            now.seconds += 0.5  # loading
            yield batch

    seen = []
    for batch in clock.waiting_for(batches()):
        seen.append(batch)
        now.seconds += 1.5  # computing
        clock.step_done(1, 1)
        if batch == "b":
            assert clock.read()["data_wait_share"] == pytest.approx(0.25)
    assert seen == ["a", "b", "c"]
    assert clock.read()["data_wait_share"] == pytest.approx(0.25)  # of the third step alone
