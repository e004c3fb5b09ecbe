"""A name on the disk stands for the whole of what was written, or for what was there before; hashes and permissions."""

import errno
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artkv.errors import UserError
from artkv.files import check_writable, file_sha256, save_tensors, told, write_small, write_together, write_whole
from tests.mounted import Disk


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


def test_what_belongs_together_is_new_together(disk: Disk) -> None:
    one, other = disk.folder / "one", disk.folder / "other"
    write_together({one: lambda path: path.write_text("1"), other: lambda path: path.write_text("1")})
    disk.fill(leave=8192)
    with pytest.raises(OSError, match="No space"):
        write_together({one: lambda path: path.write_text("2"), other: lambda path: path.write_bytes(b"2" * 20_000)})
    assert (one.read_text(), other.read_text()) == ("1", "1")
    assert sorted(path.name for path in disk.folder.iterdir()) == ["ballast", "one", "other"]


def test_a_small_record_gets_through_to_a_full_disk(disk: Disk) -> None:
    path = disk.folder / "record.json"
    write_small(path, b'{"state": "running", "steps": 12}')
    disk.fill()
    write_small(path, b'{"state": "failed"}')
    assert json.loads(path.read_text()) == {"state": "failed"}
    write_small(path, b'{"state": "a longer one than before, on the same block"}')
    assert json.loads(path.read_text())["state"].startswith("a longer one")
    with pytest.raises(OSError, match="No space"):
        write_small(disk.folder / "new.json", b"{}")  # it was not there before
    disk.read_only()
    with pytest.raises(OSError, match="Read-only"):
        write_small(path, b"{}")


def test_what_safetensors_cannot_write_is_the_systems_error(disk: Disk) -> None:
    tensors = {"a": torch.zeros(1_000_000)}
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_tensors(tensors, disk.folder / "x.safetensors", {})
    assert caught.value.errno == errno.ENOSPC
    disk.read_only()
    with pytest.raises(OSError, match="Read-only file system"):
        save_tensors(tensors, disk.folder / "y.safetensors", {})


def test_a_place_is_looked_at_before_the_work(disk: Disk) -> None:
    folder = disk.folder
    (folder / "file").write_text("kept")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("file")
    before = sorted(folder.iterdir())
    for fine in ("new", "file", "link", "a/b/c/new"):
        check_writable(folder / fine, "--output x")
    for wrong, message in {
        "folder": "--output x: .*/folder is a folder; give a file in it",
        "file/below": "--output x: .*/file is not a folder that can be written; give another place",
        "file/far/below": "--output x: .*/file is not a folder",
        "pipe": "--output x: .*/pipe is no regular file",
        "n" * 252: r"--output x: .* cannot be written \(File name too long\)",
    }.items():
        with pytest.raises(UserError, match=message):
            check_writable(folder / wrong, "--output x")
    for place in ("/dev/null", "/sys/new", "/proc/new"):
        with pytest.raises(UserError, match="--output x: /(dev|proc|sys)"):
            check_writable(Path(place), "--output x")
    assert sorted(folder.iterdir()) == before
    disk.fill()
    with pytest.raises(UserError, match=r"--output x: .* cannot be written \(No space left on device\)"):
        check_writable(folder / "new", "--output x")
    disk.free()
    disk.read_only()
    with pytest.raises(UserError, match=r"--output x: .* cannot be written \(Read-only file system\)"):
        check_writable(folder / "new", "--output x")


def test_a_limit_on_files_is_no_lack_of_room() -> None:
    with pytest.raises(UserError, match=r"x: cannot be written \(File too large\); raise `ulimit -f`"), told("x", "no"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "x")
    with pytest.raises(UserError, match="No space left on device.; make room"), told("x", "make room"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")


def test_what_the_system_refuses_is_told_by_the_name_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def refused(temporary: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))

    with pytest.raises(PermissionError) as caught:
        write_whole(path, refused)
    assert caught.value.filename == str(path)
    with pytest.raises(UserError, match=r"--output /proc/x: /proc cannot be written \(No such file or directory\)"):
        check_writable(Path("/proc/x"), "--output /proc/x")
