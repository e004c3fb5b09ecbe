"""What surrounds DeepSpeed's start; what it does in a run is in tests/training/test_run.py and others."""

import os

import pytest
import torch
from torch import nn

from artkv.run_folder.state import TrainableState
from artkv.training import engine as module


class Reached(Exception):
    """DeepSpeed's start was reached."""


@pytest.mark.parametrize("before", [None, "0"])
def test_deepspeeds_start_imports_no_compiler(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as torch is told so; a user's own word holds again afterwards."""
    name = "TORCHDYNAMO_DISABLE"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    told: list[str | None] = []

    def initialize(**_: object) -> None:
        told.append(os.environ.get(name))
        raise Reached

    monkeypatch.setattr(module.deepspeed, "initialize", initialize)
    model = nn.Linear(2, 2)
    model.named_trainables = lambda: dict(model.named_parameters())  # type: ignore[assignment]
    with pytest.raises(Reached):
        module.TrainingEngine(model, {}, 0.0, TrainableState({"weight": torch.zeros(2, 2)}, {}, {}, 0))  # type: ignore[arg-type]
    assert told == ["1"]
    assert os.environ.get(name) == before
