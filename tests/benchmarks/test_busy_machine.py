"""Which turns count, and what each worker is told of how to wait."""

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest


def test_alone_only_quiet_turns_count_and_medians_are_over_turns(module: Any) -> None:
    busy = module("busy_machine")
    turns = [(100.0, 1.0, 0.01), (900.0, 1.0, 0.5), (120.0, 1.0, 0.02), (140.0, 1.0, 0.03)]
    table = busy.format_figures({load: dict.fromkeys(busy.WAYS, turns) for load in ("alone", "loops")})
    assert table.splitlines()[0] == "| | alone | turns | loops | turns |"
    assert table.splitlines()[2] == "| default | 120 | 3 | 130 | 4 |"
    assert len(table.splitlines()) == 2 + len(busy.WAYS)


@pytest.mark.parametrize("way", ["default", "passive", "spin 1000"])
def test_a_worker_waits_in_its_way_alone_whatever_is_set_here(
    way: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, given = module("busy_machine"), []

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        given.append({name: value for name, value in env.items() if name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")})
        return SimpleNamespace(stdout=json.dumps([1.0, 2.0, 0.0]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert busy.turn(way, "alone", 1.0) == (1.0, 2.0, 0.0)
    assert given == [busy.WAYS[way]]
