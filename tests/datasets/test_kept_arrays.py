"""Arrays come back from the cache bit by bit, with their key alone, and from a whole file alone."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from artkv.datasets.kept_arrays import keep, kept, kept_at

ARRAYS = {
    "places": np.arange(-3, 50, dtype=np.int64),
    "none": np.zeros(0, dtype=np.uint8),
    "text": np.frombuffer("één".encode(), np.uint8),
    "tokens": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
}


@pytest.fixture
def folder() -> Path:
    folder = kept_at("things", 1, "one")
    assert folder is not None
    keep(folder, "key", ARRAYS)
    return folder


@pytest.fixture
def path(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_arrays_come_back_read_only_and_aligned(folder: Path) -> None:
    found = kept(folder, "key")
    assert found is not None
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert found[name].ctypes.data % array.dtype.itemsize == 0
        assert not found[name].flags.writeable
    assert len(list(folder.iterdir())) == 1  # and no temporary one


def test_another_key_name_or_version_has_none(folder: Path) -> None:
    assert kept(folder, "Key") is None
    places = {
        kept_at("things", 1, "one"),
        kept_at("things", 1, "on", "e"),
        kept_at("things", 2, "one"),
        kept_at("t", 1),
    }
    assert len(places) == 4


def test_what_others_may_have_mapped_is_not_replaced(folder: Path, path: Path) -> None:
    """On NFS before version 4 another host's rename over it takes the pages away: SIGBUS."""
    inode = path.stat().st_ino
    keep(folder, "other", {"places": np.zeros(2, dtype=np.int64)})
    keep(folder, "key", {name: ARRAYS[name] for name in ("none", "text")})  # as of a rank that was slower
    assert kept(folder, "other")["places"].tolist() == [0, 0]  # type: ignore[index]
    assert list(kept(folder, "key")) == list(ARRAYS)  # type: ignore[arg-type]
    assert path.stat().st_ino == inode
    assert len(list(folder.iterdir())) == 2


def test_what_no_run_has_used_for_long_is_removed(folder: Path, path: Path) -> None:
    other = kept_at("things", 1, "two")
    assert other is not None
    keep(other, "unused", ARRAYS)
    month_ago = time.time() - 31 * 86400
    for file in (path, *other.iterdir()):
        os.utime(file, (month_ago, month_ago))
    assert kept(folder, "key") is not None  # used now
    keep(folder, "new", ARRAYS)
    assert kept(folder, "key") is not None
    assert kept(other, "unused") is None
    assert list(other.iterdir()) == []


def test_what_cannot_be_removed_does_not_keep_the_others_and_older_layouts_go_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    month_ago = time.time() - 31 * 86400
    flat = folder.parent / "0123.arrays"  # as they were once, without a folder
    older, empty = folder.parent.parent / "format-0" / "0123" / ".x.tmp", folder.parent / "no more"
    mine = folder.parent.parent / "mine"
    quicker = [folder.parent / "a", folder.parent / "z"]
    older.parent.mkdir(parents=True)
    empty.mkdir()
    for path in (flat, older, mine, *quicker):
        path.touch()
    for path in (flat, older, mine, *quicker, empty):
        os.utime(path, (month_ago, month_ago))
    real = os.unlink

    def unlink(path: object, **how: object) -> None:
        if Path(str(path)) in quicker:
            raise FileNotFoundError(path)
        real(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", unlink)
    keep(folder, "new", ARRAYS)
    assert not any(path.exists() for path in (flat, older, empty))
    assert mine.exists()
    assert kept(folder, "key") is not None


def test_every_damaged_byte_and_every_cut_is_seen(folder: Path, path: Path) -> None:
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert kept(folder, "key") is None
        path.write_bytes(content[:place])
        assert kept(folder, "key") is None
    keep(folder, "key", ARRAYS)
    assert kept(folder, "key") is not None
    assert path.read_bytes() == content


def test_what_is_no_such_file_has_none(folder: Path, path: Path, tmp_path: Path) -> None:
    path.unlink()
    path.mkdir()
    assert kept(folder, "key") is None
    keep(folder, "key", ARRAYS)  # cannot be written: nothing is said
    assert kept(tmp_path / "absent", "key") is None
    assert kept(None, "key") is None
    keep(None, "key", ARRAYS)


def test_without_a_home_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ARTKV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda text: text)
    assert kept_at("things", 1) is None
