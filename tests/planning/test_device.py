"""What is free on the device, as all ranks agree on it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from artkv.distributed import World, single_process
from artkv.planning.device import Device, ask_device, shared_device

CPU = torch.device("cpu")


class _Ranks(World):
    """Three ranks, the others with what `others` says."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def test_a_cpu_is_not_asked() -> None:
    assert ask_device(CPU) is None
    assert shared_device(single_process(CPU)) is None


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_device_has_bfloat16_where_training_would_use_it(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10 * 2**30, 11 * 2**30))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA GeForce RTX 2080 Ti")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    found = ask_device(torch.device("cuda", 0))
    assert found is not None
    assert replace(found, host_bytes=None) == Device("NVIDIA GeForce RTX 2080 Ti", 11 * 2**30, 10 * 2**30, has_bf16)
    assert found.host_bytes is not None


def test_the_least_that_is_free_on_any_rank_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Device("GPU", 80, 70)
    monkeypatch.setattr("artkv.planning.device.ask_device", lambda device: own)
    world = _Ranks(0, 0, 3, CPU)
    monkeypatch.setattr(_Ranks, "others", (replace(own, free_bytes=20), replace(own, free_bytes=75)))
    assert shared_device(world) == Device("GPU", 80, 20)
    of_hosts = (replace(own, host_bytes=9), replace(own, host_bytes=4))
    monkeypatch.setattr(_Ranks, "others", of_hosts)
    assert shared_device(world) == Device("GPU", 80, 70, host_bytes=4)
    monkeypatch.setattr(_Ranks, "others", (own, None))
    assert shared_device(world) is None
