"""A name on the disk stands for the whole of what was written, or for what was there before; hashes and permissions."""

import hashlib
import io
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artkv.files import file_sha256, save_tensors, write_whole


class Killed(BaseException):
    """Stands for a kill: no code expects it."""


def killed(*_: object) -> None:
    raise Killed


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    for text in ("first", "second"):
        write_whole(path, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
        assert path.read_text() == text
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["write", "sync", "replace"])
def test_a_kill_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with monkeypatch.context() as patch:
        if where == "sync":
            patch.setattr("artkv.files.sync", killed)
        if where == "replace":
            patch.setattr(Path, "replace", killed)

        def write(temporary: Path) -> None:
            temporary.write_text("half")
            if where == "write":
                raise Killed

        with pytest.raises(Killed):
            write_whole(path, write)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_does_not_get_in(tmp_path: Path) -> None:
    left = tmp_path / ".folder.tmp"
    left.mkdir()
    (left / "old").write_text("left")

    def write(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "new").write_text("whole")

    write_whole(tmp_path / "folder", write)
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["new"]
    assert not left.exists()


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("kept")

    def write(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "new").write_text("whole")

    with pytest.raises(OSError, match="not empty"):
        write_whole(tmp_path / "folder", write)
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("size", [0, 5, 1 << 20, (1 << 21) + 3])
def test_is_the_sha256_of_all_bytes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    expected = hashlib.sha256(content).hexdigest()
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # Python 3.10 has none
    assert file_sha256(io.BytesIO(content)) == expected


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
