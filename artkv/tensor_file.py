"""Writes safetensors files that others may read."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """safetensors' `save_file`, with the permissions that the user's umask gives to any other file.

    safetensors 0.8 makes files that their owner alone can read, which a group's shared folder is no place for.
    """
    path.unlink(missing_ok=True)
    path.touch()  # with the permissions wanted
    mode = path.stat().st_mode
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, dict(metadata))
    path.chmod(mode)
