"""What surrounds DeepSpeed's start; what it does in a run is in tests/training/test_run.py and others."""

import os
import subprocess
import sys

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
