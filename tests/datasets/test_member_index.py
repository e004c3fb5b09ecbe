"""Where pictures lie is remembered as long as a file is the same, and never from a damaged file."""

import time
from pathlib import Path

import pytest

from artkv.config.paths import user_cache
from artkv.datasets import member_index
from artkv.datasets.member_index import MemberIndex, read_member_index
from tests.datasets.test_tar_members import MEMBERS, write_tar


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(member_index.time, "time_ns", lambda: now + 60 * 10**9)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Those that a test may take away."""
    readers = dict(member_index._READERS)
    monkeypatch.setattr(member_index, "_READERS", readers)
    return readers


def same(one: MemberIndex, other: MemberIndex) -> bool:
    numbers = [(i.offsets.tolist(), i.sizes.tolist(), i.other_names) for i in (one, other)]
    return one.row_of_name == other.row_of_name and one.stamp == other.stamp and numbers[0] == numbers[1]


def kept_files() -> list[Path]:
    return sorted((user_cache() / "members").glob("*/*/*"))


def test_an_index_is_remembered_until_the_file_changes(tmp_path: Path, later: None, readers: dict) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    first = read_member_index(path)
    read = readers.pop(".tar")  # not called: the cache has it
    assert same(read_member_index(path), first)
    readers[".tar"] = read
    write_tar(path, {"other.jpg": b"1"})
    assert list(read_member_index(path).row_of_name) == ["other.jpg"]


@pytest.mark.parametrize("place", [0, 40, 200, -1])
def test_a_damaged_index_is_not_used(tmp_path: Path, later: None, readers: dict, place: int) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    first = read_member_index(path)
    (kept,) = kept_files()
    damaged = bytearray(kept.read_bytes())
    damaged[place] ^= 1
    kept.write_bytes(damaged)
    assert same(read_member_index(path), first)
    readers.clear()  # made anew
    assert same(read_member_index(path), first)


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    read_member_index(write_tar(tmp_path / "s.tar", MEMBERS))
    assert kept_files() == []
