"""A name on the disk stands for the whole of what was written, or for what was there before."""

from pathlib import Path

import pytest

from artkv.whole_file import write_whole


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
            patch.setattr("artkv.whole_file.sync", killed)
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
