"""How threads wait that PyTorch computes with: as artkv sets it before OpenMP is loaded, or as the user did."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def displayed(code: str, **variables: str) -> str:
    """What OpenMP says of its settings in a process that runs `code`, then imports torch."""
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose", **variables}
    command = [sys.executable, "-c", f"{code}\nimport torch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this build of torch has no OpenMP that tells its settings")
    return done.stderr


# GNU's OpenMP spins so many times before it sleeps: none where it waits passively, and else hundreds of thousands.
_NEVER_SPINS = "GOMP_SPINCOUNT = '0'"


def test_threads_sleep_while_they_wait_in_started_processes_too() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'], check=True)"
    assert displayed(f"import artkv\n{child}").count(_NEVER_SPINS) == 2
    assert _NEVER_SPINS not in displayed("")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", "OMP_WAIT_POLICY = 'ACTIVE'"),
        ("GOMP_SPINCOUNT", "12345", "GOMP_SPINCOUNT = '12345'"),
    ],
)
def test_what_the_user_chose_stays(name: str, value: str, shown: str) -> None:
    assert shown in displayed("import artkv", **{name: value})


def test_the_command_line_sets_it_before_torch_is_loaded() -> None:
    displayed(
        "import artkv.cli, os, sys; assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'torch' not in sys.modules"
    )
