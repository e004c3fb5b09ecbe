"""Each rank's own time, and who is named as the one that the others wait for."""

from collections.abc import Iterator

import pytest
import torch

from artkv.distributed import World
from artkv.monitoring.device_time import DeviceTime
from artkv.monitoring.stragglers import OwnTime, Stragglers
from tests.device_queue import DeviceQueue


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_waiting_for_data_and_measured_work_count_and_nothing_else_does() -> None:
    clock = Clock()
    own_time = OwnTime(DeviceTime(torch.device("cpu"), clock))

    def batches() -> Iterator[int]:
        for number in range(2):
            clock.seconds += 0.5  # decoding
            yield number

    for _ in own_time.waits_for(batches()):
        for _ in range(2):  # micro-steps
            with own_time.passing():
                clock.seconds += 1.0
            clock.seconds += 100.0  # backward, collectives
    assert own_time.read() == pytest.approx(2.5)
    assert own_time.read() is None


class Ranks(World):
    """A world in whose reductions the other ranks have said so much already."""

    def gather(self, value: object) -> list:
        return ["n1", "n1", "n2", "n2"]

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(torch.tensor(OTHERS[-1], dtype=torch.float64))


OTHERS = [[0.0] * 4]


@pytest.fixture
def stragglers() -> Stragglers:
    return Stragglers(Ranks(1, 1, 4, torch.device("cpu")))


def compare(stragglers: Stragglers, *seconds: float) -> tuple[dict[str, float], str | None]:
    OTHERS[-1] = [seconds[0], 0.0, *seconds[2:]]
    by_rank = stragglers.share(seconds[1])
    assert by_rank is not None
    return stragglers.compare(by_rank.read())


def test_the_slowest_rank_is_in_the_metrics(stragglers: Stragglers) -> None:
    metrics, note = compare(stragglers, 1.0, 1.1, 0.9, 1.05)
    assert metrics == {
        "own_step_seconds": pytest.approx(1.025),
        "own_step_seconds_max": pytest.approx(1.1),
        "slowest_rank": 1.0,
    }
    assert note is None


def test_a_rank_is_named_once_when_it_was_slow_in_three_windows(stragglers: Stragglers) -> None:
    slow, quick = (1.0, 1.0, 2.0, 1.0), (1.0, 1.0, 1.1, 1.0)
    notes = [compare(stragglers, *seconds)[1] for seconds in (slow, slow, quick, slow, slow, slow, slow)]
    assert [note is None for note in notes] == [True, True, True, True, True, False, True]
    assert notes[5] == (
        "rank 2 on n2 is slow: data and forward pass take it 2 s a step, 100% more than the other ranks' 1 s; "
        "all wait for it"
    )


def test_of_two_ranks_each_is_compared_with_the_other() -> None:
    class Two(Ranks):
        def gather(self, value: object) -> list:
            return ["n1", "n2"]

    stragglers = Stragglers(Two(1, 0, 2, torch.device("cpu")))
    notes = [compare(stragglers, 1.0, 1.3)[1] for _ in range(3)]
    assert notes[2] is not None
    assert "rank 1 on n2 is slow" in notes[2]
    assert "30% more" in notes[2]


def test_one_rank_is_compared_with_nobody() -> None:
    assert Stragglers(World(0, 0, 1, torch.device("cpu"))).share(3.0) is None


def test_ranks_without_a_step_that_was_timed_are_not_compared(stragglers: Stragglers) -> None:
    assert stragglers.share(None) is None


def test_the_step_that_a_device_is_at_is_read_with_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DeviceQueue()
    queue.install(monkeypatch)
    own_time = OwnTime(queue.time())
    read: list[float | None] = []
    for seconds in own_time.waits_for(iter([1.0, 2.0, 4.0])):
        began = queue.busy_until
        with own_time.passing():
            queue.launch(seconds)
        queue.launch(100.0)
        queue.host_seconds = began  # the host is no more than a step ahead
        read.append(own_time.read())
    assert read == [None, pytest.approx(1.0), pytest.approx(2.0)]
    assert not queue.waits
