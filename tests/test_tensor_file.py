"""Files as `open` would make them, with safetensors' bytes."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artkv.tensor_file import save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_the_umasks(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors({"a": torch.eye(3).T, "b": torch.zeros(2)}, tmp_path / "x.safetensors", {"format": "pt"})
    finally:
        assert os.umask(before) == umask
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode


def test_bytes_are_safetensors_own(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.ones(2)}
    save_tensors(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "y.safetensors", {"format": "pt"})
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], tensors["a"])
