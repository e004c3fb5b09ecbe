"""What surrounds DeepSpeed's start; what it does in a run is in tests/training/test_run.py and others."""

import os
import subprocess
import sys

import torch
from torch import nn

from artkv.training.engine import _parameter_groups

IMPORTS_MUON = """
import sys
from artkv.training import engine
with engine._without_compiler():
    import deepspeed.runtime.zero.muon.original_muon
print("torch._inductor.compile_fx" in sys.modules)
import os, torch
print(os.environ.get("TORCHDYNAMO_DISABLE"), torch._dynamo.config.disable)
"""


def test_deepspeeds_muon_imports_no_compiler_and_a_users_own_still_compiles() -> None:
    """In a process of its own: whatever tests import would be there already."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_MUON], env=environment, capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.splitlines()[-2:] == ["False", "None False"]


def test_weights_decay_and_neither_biases_norms_nor_gates_of_any_shape_do() -> None:
    model = nn.Module()
    model.projection, model.norm = nn.Linear(3, 4), nn.LayerNorm(4)
    model.injection = nn.Module()
    model.injection.kv_prefix_gate = nn.Parameter(torch.zeros(2, 12))  # as gate_per: head has it
    decaying, others = _parameter_groups(model, 0.05)
    assert decaying["weight_decay"] == 0.05
    assert [tuple(p.shape) for p in decaying["params"]] == [(4, 3)]
    assert others["weight_decay"] == 0
    assert sorted(tuple(p.shape) for p in others["params"]) == [(2, 12), (4,), (4,), (4,)]
