"""Arrays come back from the cache bit by bit, with their key alone, and from a whole file alone."""

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
def path() -> Path:
    path = kept_at("things", 1, "one")
    assert path is not None
    keep(path, "key", ARRAYS)
    return path


def test_arrays_come_back_read_only_and_aligned(path: Path) -> None:
    found = kept(path, "key")
    assert found is not None
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert found[name].ctypes.data % array.dtype.itemsize == 0
        assert not found[name].flags.writeable
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # and no temporary one


def test_another_key_name_or_version_has_none(path: Path) -> None:
    assert kept(path, "Key") is None
    places = {
        kept_at("things", 1, "one"),
        kept_at("things", 1, "on", "e"),
        kept_at("things", 2, "one"),
        kept_at("t", 1),
    }
    assert len(places) == 4


def test_what_is_kept_later_takes_its_place(path: Path) -> None:
    old = kept(path, "key")
    keep(path, "other", {"places": np.zeros(2, dtype=np.int64)})
    assert kept(path, "key") is None
    assert kept(path, "other")["places"].tolist() == [0, 0]  # type: ignore[index]
    assert old is not None
    assert np.array_equal(old["places"], ARRAYS["places"])  # still mapped from the file that was there


def test_every_damaged_byte_and_every_cut_is_seen(path: Path) -> None:
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert kept(path, "key") is None
        path.write_bytes(content[:place])
        assert kept(path, "key") is None
    path.write_bytes(content)
    assert kept(path, "key") is not None


def test_what_is_no_such_file_has_none(path: Path, tmp_path: Path) -> None:
    path.unlink()
    path.mkdir()
    assert kept(path, "key") is None
    keep(path, "key", ARRAYS)  # cannot be written: nothing is said
    assert kept(tmp_path / "absent", "key") is None
    assert kept(None, "key") is None
    keep(None, "key", ARRAYS)


def test_without_a_home_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ARTKV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda text: text)
    assert kept_at("things", 1) is None
