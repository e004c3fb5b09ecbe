"""A log on a disk that fills up: whole pieces, in order, and what is lost is told."""

import errno
import os
from pathlib import Path

import pytest

from artkv.monitoring import appended_file
from artkv.monitoring.appended_file import AppendedFile
from tests.mounted import Disk


def pieces(first: int, last: int, size: int = 900) -> list[bytes]:
    return [b"%04d" % number + b"x" * size + b"\n" for number in range(first, last)]


def test_pieces_come_whole_and_in_order_when_there_is_room_again(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    path = disk.folder / "log"
    log = AppendedFile(path)
    disk.fill(leave=8192)
    for piece in pieces(0, 40):
        log.write(piece)
        # A full page takes a part of a piece: it is taken back at once.
        assert path.read_bytes() in [b"".join(pieces(0, number)) for number in range(12)]
    told = capsys.readouterr().err
    assert told.count("cannot be written (No space left on device); training goes on") == 1
    disk.free()
    log.write(pieces(40, 41)[0])
    assert path.read_bytes() == b"".join(pieces(0, 41))
    assert capsys.readouterr().err == f"artkv: {path}: is written again\n"
    log.close()
    log.close()
    assert capsys.readouterr().err == ""


def test_a_read_only_disk_is_waited_for_too(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    path = disk.folder / "log"
    path.write_bytes(b"before\n")
    log = AppendedFile(path)
    with pytest.MonkeyPatch.context() as patch:  # no disk becomes read-only while a file is open for writing

        def refused(*_: object) -> int:
            raise OSError(30, "Read-only file system")

        patch.setattr("artkv.monitoring.appended_file.os.write", refused)
        patch.setattr("artkv.monitoring.appended_file.os.ftruncate", refused)
        log.write(b"1\n")
        log.write(b"2\n")
    assert "cannot be written (Read-only file system)" in capsys.readouterr().err
    log.flush()
    assert path.read_bytes() == b"before\n1\n2\n"
    log.close()


def test_what_does_not_fit_into_memory_is_given_up_and_told(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    path = disk.folder / "log"
    log = AppendedFile(path, most_kept_bytes=10 * 905)
    disk.fill()
    for piece in pieces(0, 30):
        log.write(piece)
    disk.free()
    log.flush()
    assert path.read_bytes() == b"".join(pieces(20, 30))
    assert "is written again; 20 of its records did not fit into memory and are lost" in capsys.readouterr().err
    disk.fill()
    for piece in pieces(0, 5):
        log.write(piece)
    log.close()
    told = capsys.readouterr().err
    assert "log: its last " in told
    assert "records could not be written and are lost" in told
    content = Path(path).read_bytes()
    assert content.endswith(b"\n")  # no half piece


def test_what_a_file_server_took_and_lost_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NFS tells that a quota is used up with the next sync, and has zeros where it took pieces."""
    path, all_pieces = tmp_path / "log", pieces(0, 6)
    monkeypatch.setattr(appended_file, "_SECONDS_BETWEEN_SYNCS", 0.0)
    log = AppendedFile(path)
    log.write(all_pieces[0])
    true_sync = os.fdatasync

    def lose(file: int) -> None:
        with path.open("r+b") as other:
            other.seek(len(all_pieces[0]))
            other.write(bytes(path.stat().st_size - other.tell()))
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(appended_file.os, "fdatasync", lose)
    for piece in all_pieces[1:5]:
        log.write(piece)
        assert path.read_bytes() == all_pieces[0]
    told = capsys.readouterr().err
    assert told.count("cannot be written (Disk quota exceeded); training goes on") == 1
    assert "is written again" not in told
    monkeypatch.setattr(appended_file.os, "fdatasync", true_sync)
    log.write(all_pieces[5])
    assert path.read_bytes() == b"".join(all_pieces)
    assert capsys.readouterr().err == f"artkv: {path}: is written again\n"
    log.close()
    assert path.read_bytes() == b"".join(all_pieces)


def test_the_disk_is_waited_for_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, synced = [100.0], []
    monkeypatch.setattr(appended_file.time, "monotonic", lambda: seconds[0])
    log = AppendedFile(tmp_path / "log")
    true_sync = os.fdatasync

    def sync(file: int) -> None:
        true_sync(file)
        synced.append((tmp_path / "log").stat().st_size)

    monkeypatch.setattr(appended_file.os, "fdatasync", sync)
    for number in range(20):
        log.write(b"12345678\n")
        assert (tmp_path / "log").stat().st_size == 9 * (number + 1)  # readers see it at once
        seconds[0] += 0.25
    assert synced == [9 * (number + 1) for number in range(0, 20, 4)]
    log.flush()
    log.write(b"12345678\n")
    log.close()
    assert synced[-2:] == [180, 189]
