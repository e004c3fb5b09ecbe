"""The number that a tracker knows a run by."""

from pathlib import Path

import pytest

from artkv.monitoring.library_log import TRACKED_AS, tracked_id


def test_a_resumed_run_keeps_its_number_and_a_fresh_one_has_another(tmp_path: Path) -> None:
    first = tracked_id(tmp_path, goes_on=False)
    assert tracked_id(tmp_path, goes_on=True) == first
    second = tracked_id(tmp_path, goes_on=False)
    assert second != first
    assert tracked_id(tmp_path, goes_on=True) == second


@pytest.mark.parametrize("content", [b"", b"../../etc", b"\xff\xfe", b"ABCDEF012345", b"0123456789ab0\n"])
def test_a_file_that_holds_no_number_is_made_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / TRACKED_AS).write_bytes(content)
    number = tracked_id(tmp_path, goes_on=True)
    assert (tmp_path / TRACKED_AS).read_text() == f"{number}\n"
    assert len(number) == 12


def test_a_run_that_was_not_tracked_before_gets_one(tmp_path: Path) -> None:
    assert tracked_id(tmp_path, goes_on=True) == tracked_id(tmp_path, goes_on=True)
