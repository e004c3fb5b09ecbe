"""Ranks stop together, and a stop is worth a new start only where this one has gained something."""

import json
import signal
from pathlib import Path

import pytest
import torch

from artkv.distributed import ToHost, World, single_process
from artkv.errors import Preempted, RunFailed
from artkv.training.preemption import StopRequests
from artkv.training.stops import RunStops
from tests.feature_cache.conftest import on_ranks


def requests_of(reason: str | None) -> StopRequests:
    requests = StopRequests(now=lambda: 0.0)
    if reason is not None:
        requests._note(signal.Signals[reason], None)
    return requests


def test_one_ranks_request_stops_all_and_rank_0_leaves_the_marker(tmp_path: Path) -> None:
    def on_rank(world: World) -> None:
        stops = RunStops(requests_of("SIGUSR1" if world.rank == 1 else None), world, tmp_path, step=3)
        assert stops.is_asked() == (world.rank == 1)
        stops.note_gain(step=4)
        stops.stop_if_asked()

    results = on_ranks(2, on_rank)
    assert [(type(r), r.step, r.reason) for r in results] == [(Preempted, 4, "SIGUSR1")] * 2
    assert json.loads((tmp_path / "preempted.json").read_text())["step"] == 4


def test_nobody_stops_unasked(tmp_path: Path) -> None:
    RunStops(requests_of(None), single_process(), tmp_path, step=0).stop_if_asked()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reason", "error"),
    [("SIGUSR1", RunFailed), ("SIGTERM", Preempted), ("SIGHUP", Preempted)],
)
def test_a_start_that_gained_nothing_is_not_to_be_repeated_for_want_of_time(
    tmp_path: Path, reason: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        RunStops(requests_of(reason), single_process(), tmp_path, step=2).stop_if_asked()
    assert (tmp_path / "preempted.json").exists() == (error is Preempted)


def test_votes_travel_with_the_number_that_is_summed_up(tmp_path: Path) -> None:
    def on_rank(world: World) -> tuple[float, list[float]]:
        stops = RunStops(requests_of("SIGTERM" if world.rank else None), world, tmp_path, step=0)
        number, votes = stops.meet(torch.tensor(10.0 + world.rank))
        return float(number), votes.read()

    assert on_ranks(3, on_rank) == [(33.0, [2.0])] * 3


def test_a_number_on_the_host_is_read_as_it_is() -> None:
    assert ToHost(torch.tensor(2.5)).read() == [2.5]
