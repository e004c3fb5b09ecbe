"""Moments of the host, and of a device's queue."""

import pytest
import torch

from artkv.monitoring.device_time import DeviceTime
from tests.device_queue import DeviceQueue


def test_without_a_queue_moments_are_the_hosts() -> None:
    moments = iter([3.0, 5.5])
    time = DeviceTime(torch.device("cpu"), lambda: next(moments))
    assert time.seconds(time.mark(), time.mark()) == 2.5


def test_of_a_queue_they_are_the_devices_and_only_seconds_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = DeviceQueue()
    queue.install(monkeypatch)
    time = queue.time()
    queue.launch(4.0)
    began = time.mark()
    queue.launch(2.0)
    ended = time.mark()
    assert queue.host_seconds == 100.0
    assert time.seconds(began, ended) == pytest.approx(2.0)
    assert queue.host_seconds == 106.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_noting_waits_for_nothing() -> None:
    time = DeviceTime(torch.device("cuda"))
    torch.cuda._sleep(10)
    torch.cuda.synchronize()
    began = time.mark()
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    ended = time.mark()
    assert not ended.query()
    assert 0.02 < time.seconds(began, ended) < 2
