"""Writes safetensors files that others may read."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """safetensors' `save_file`, with the permissions that the user's umask gives to any other file.

    safetensors 0.8 makes files that their owner alone can read, which a group's shared folder is no place for.
    """
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, dict(metadata))
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    path.chmod(0o666 & ~umask)
