"""Rates on a clock that the test turns."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from artkv.monitoring.device_time import DeviceTime
from artkv.monitoring.throughput import StepClock
from tests.device_queue import DeviceQueue

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_rates_median_and_longest_step_of_the_window() -> None:
    now = Clock()
    clock = StepClock(DeviceTime(CPU, now))
    for seconds, questions, paintings in [(1.0, 16, 4), (2.0, 12, 3), (6.0, 8, 2)]:
        now.seconds += seconds
        clock.step_done(questions, paintings)
    assert clock.take_window().rates() == pytest.approx(
        {
            "questions_per_second": 4.0,
            "paintings_per_second": 1.0,
            "step_seconds": 2.0,
            "step_seconds_max": 6.0,
            "data_wait_share": 0.0,
        }
    )
    assert clock.take_window().rates() == {}
    now.seconds += 0.5
    clock.step_done(2, 1)
    assert clock.take_window().rates()["questions_per_second"] == pytest.approx(4.0)


def test_pauses_count_for_no_step() -> None:
    now = Clock()
    clock = StepClock(DeviceTime(CPU, now))
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
    assert clock.take_window().rates() == pytest.approx(
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
    assert clock.take_window().rates()["step_seconds"] == pytest.approx(3.0)


def test_a_pause_ended_by_an_error_still_ends() -> None:
    now = Clock()
    clock = StepClock(DeviceTime(CPU, now))
    with contextlib.suppress(RuntimeError), clock.paused():
        now.seconds += 5
        raise RuntimeError
    now.seconds += 1
    clock.step_done(1, 1)
    assert clock.take_window().rates()["step_seconds"] == pytest.approx(1.0)


def test_share_of_waiting_for_data() -> None:
    now = Clock()
    clock = StepClock(DeviceTime(CPU, now))

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
            assert clock.take_window().rates()["data_wait_share"] == pytest.approx(0.25)
    assert seen == ["a", "b", "c"]
    assert clock.take_window().rates()["data_wait_share"] == pytest.approx(0.25)  # of the third step alone


def test_steps_of_a_device_are_timed_there_however_far_ahead_the_host_is(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DeviceQueue()
    queue.install(monkeypatch)
    clock = StepClock(queue.time())

    def step(seconds: float) -> None:
        queue.host_seconds += 0.25  # launching
        queue.launch(seconds)
        clock.step_done(4, 1)

    for seconds in (2.0, 1.0, 2.0):
        step(seconds)
    window = clock.take_window()  # the host is steps ahead
    assert (queue.host_seconds, queue.waits) == (100.75, {})
    with clock.paused():  # a checkpoint waits for the device itself, and then writes for a while
        queue.wait(queue.busy_until, "save")
        queue.host_seconds += 50.0
    step(3.0)
    # The first step began when the clock was made, a quarter of a second before the device had anything to do.
    assert window.rates() == pytest.approx(
        {
            "questions_per_second": 12 / 5.25,
            "paintings_per_second": 3 / 5.25,
            "step_seconds": 2.0,
            "step_seconds_max": 2.25,
            "data_wait_share": 0.0,
        }
    )
    assert queue.waits == {"save": 1}
    assert clock.take_window().rates()["step_seconds"] == pytest.approx(3.25)
