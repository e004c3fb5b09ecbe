"""What a run ran on, for environment.json."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "artkv", "torch", "torchvision", "deepspeed", "transformers", "tokenizers", "timm", "peft", "safetensors",
    "salesforce-lavis", "numpy", "pandas", "pillow", "pydantic", "sacrebleu", "tensorboard",
)  # fmt: skip
# Named one by one: a dump of the whole environment would put people's tokens into the run's folder.
_VARIABLES = (
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "DS_ACCELERATOR",
    "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_RESTART_COUNT",
)  # fmt: skip


def environment_report() -> dict[str, Any]:
    """Versions, machine, GPUs, launcher variables and git commit, as a dict that JSON can hold.

    What cannot be found out is None; nothing raises.
    """
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda_runtime": torch.version.cuda,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cpu_cores_usable": _usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "host_memory_bytes": _host_memory_bytes(),
        "gpus": _gpus(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "git": git_state(Path(__file__).resolve().parents[2]),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux: what Slurm or taskset left to this process
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _host_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "compute_capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in found
    ]


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit, and whether tracked files were changed, of the checkout at `root`; None if it is none.

    A package installed inside somebody else's checkout must not report that one's commit, so `root`
    has to be the top of its checkout.
    """
    top = _git_output(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None
    changes = _git_output(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git_output(root, "rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}


def _git_output(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
