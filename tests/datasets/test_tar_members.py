"""Where members lie, against the `tarfile` module, and what keeps a tar from being read."""

import io
import tarfile
from pathlib import Path

import pytest

from artkv.datasets.member_index import read_member_index
from artkv.errors import UserError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
MEMBERS = {"a.jpg": b"first", "sub/b.jpg": bytes(range(256)) * 5, "empty.json": b"", "é.png": b"x" * 512}


def write_tar(path: Path, members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    """By Python's `tarfile`, which is not what reads the members here."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("tar_format", FORMATS)
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, tar_format: int) -> None:
    members = MEMBERS if tar_format == tarfile.USTAR_FORMAT else MEMBERS | {"long/" * 40 + "c.jpg": b"deep"}
    path = write_tar(tmp_path / "s.tar", members, tar_format)
    index, content = read_member_index(path), path.read_bytes()
    with tarfile.open(path) as tar:
        assert list(index.row_of_name) == tar.getnames()
    found = {n: content[index.offsets[r] : index.offsets[r] + index.sizes[r]] for n, r in index.row_of_name.items()}
    assert found == members


@pytest.mark.parametrize("cut", range(1, 512 * 7, 311))
def test_a_tar_that_was_cut_off_is_told(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"tar .*s\.tar: .*(cut off|damaged).*fetch it whole"):
        read_member_index(path)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    content[1024 + 3] ^= 1  # of the second member's name
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged: no header of a member at byte 1,024"):
        read_member_index(path)


def test_tars_put_one_behind_the_other_are_told(tmp_path: Path) -> None:
    one, other = write_tar(tmp_path / "1.tar", MEMBERS), write_tar(tmp_path / "2.tar", {"z.jpg": b"z"})
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + other.read_bytes())
    with pytest.raises(UserError, match="goes on after its end mark"):
        read_member_index(tmp_path / "both.tar")
