"""Pictures in a page: small, as many as there is room for, and what cannot be read is told."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artkv.datasets.decoding import PICTURE_FORMATS
from artkv.report.pictures import take_pictures

PLENTY = 10_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "room").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    exif[0x010E] = "a private remark"
    Image.new("RGB", (40, 20), "red").save(tmp_path / "room" / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


def decoded(jpeg: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(jpeg)))


def test_pictures_are_small_upright_and_without_metadata(root: Path) -> None:
    taken = take_pictures(["wide.png", "room/turned.jpg"], root, None, PLENTY)
    assert list(taken.images) == ["wide.png", "room/turned.jpg"]
    assert [(decoded(jpeg).format, decoded(jpeg).size) for jpeg in taken.jpegs] == [
        ("JPEG", (320, 213)),
        ("JPEG", (20, 40)),
    ]
    assert not decoded(taken.jpegs[1]).getexif()
    assert b"private" not in base64.b64decode(taken.jpegs[1])
    assert (taken.left_out, list(taken.missing)) == (0, [])


def test_absolute_paths_need_no_root(root: Path) -> None:
    assert len(take_pictures([str(root / "wide.png")], None, None, PLENTY).jpegs) == 1


def test_what_cannot_be_read_is_told_and_takes_no_ones_place(root: Path) -> None:
    taken = take_pictures(["broken.jpg", "gone.jpg", "wide.png"], root, 1, PLENTY)
    assert list(taken.images) == ["wide.png"]
    assert taken.left_out == 0
    assert [message.split(": ")[1].split(";")[0] for message in taken.missing] == [
        f"not a picture of a known format ({', '.join(PICTURE_FORMATS)})",
        "no such file",
    ]


@pytest.mark.parametrize("most", [0, 2])
def test_no_more_than_are_wanted(root: Path, most: int) -> None:
    taken = take_pictures(["wide.png", "room/turned.jpg", "wide.png"], root, most, PLENTY)
    assert (len(taken.jpegs), taken.left_out) == (most, 3 - most)


def test_no_more_than_there_is_room_for(root: Path) -> None:
    (one,) = take_pictures(["wide.png"], root, None, PLENTY).jpegs
    taken = take_pictures(["wide.png"] * 5, root, None, 3 * len(one) + 10)
    assert (len(taken.jpegs), taken.left_out) == (3, 2)
    assert take_pictures(["wide.png"], root, None, len(one)).left_out == 0
    assert take_pictures(["wide.png"], root, None, len(one) - 1).left_out == 1
