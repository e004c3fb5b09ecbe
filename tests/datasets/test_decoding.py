"""Picture files of every format, whole, damaged or planted: decoded within bounds, or refused with a `UserError`."""

import io
import os
import random
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artkv.datasets.decoding import PICTURE_FORMATS, Room, decoded
from artkv.datasets.pictures import open_picture, picture_damage
from artkv.errors import UserError


def noise(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(picture: Image.Image, kind: str, **settings: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **settings)
    return content.getvalue()


def every_kind() -> dict[str, bytes]:
    files = {kind: saved(noise(), kind) for kind in PICTURE_FORMATS}
    files["animated GIF"] = saved(noise(mode="P"), "GIF", save_all=True, append_images=[noise(mode="P")])
    files["animated PNG"] = saved(noise(), "PNG", save_all=True, append_images=[noise()])
    files["animated WEBP"] = saved(noise(), "WEBP", save_all=True, append_images=[noise(20, 20).resize((40, 30))])
    files["TIFF of two pages, LZW"] = saved(
        noise(), "TIFF", save_all=True, append_images=[noise()], compression="tiff_lzw"
    )
    files["TIFF, JPEG inside"] = saved(noise(), "TIFF", compression="jpeg")
    files["transparent palette"] = saved(noise(mode="P"), "PNG", transparency=3)
    files["CMYK JPEG"] = saved(noise(mode="CMYK"), "JPEG")
    files["progressive JPEG with EXIF"] = saved(noise(), "JPEG", progressive=True, exif=exif())
    files["16 bits"] = saved(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG")
    return files


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010E] = "what it shows"
    return tags


KINDS = every_kind()


def test_every_allowed_format_is_read(tmp_path: Path) -> None:
    assert {"JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"} <= set(PICTURE_FORMATS)
    for content in KINDS.values():
        with decoded("p", content) as picture:
            assert picture.mode == "RGB"
            assert sorted(picture.size) == [30, 40]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_told_or_harmless(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    whole = KINDS[kind]
    refused = 0
    for number in range(120):
        changed = bytearray(whole)
        place = rng.randrange(min(len(whole), 60) if number % 2 else len(whole))
        if number % 5 == 0:
            del changed[place:]
        elif number % 5 == 1:
            del changed[place : place + rng.randrange(1, 20)]
        else:
            for _ in range(rng.randrange(1, 5)):
                changed[min(place + rng.randrange(8), len(whole) - 1)] = rng.randrange(256)
        told = None
        try:
            # Sizes that the damage makes up are refused, so that a test of bytes needs no GiB.
            with decoded("p", bytes(changed), max_pixels=1_000_000) as picture:
                assert picture.mode == "RGB"
        except UserError as error:
            told = str(error)
        if told is not None:
            refused += 1
            assert "; " in told
            assert told.isprintable()
            assert len(told) < 700
    assert refused > 15
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "SGI", "IM"])
def test_other_formats_are_not_tried(kind: str, tmp_path: Path) -> None:
    content = saved(noise(), kind)
    (tmp_path / "other.jpg").write_bytes(content)
    message = r"not a picture of a known format \(JPEG, PNG, WEBP, TIFF, GIF, BMP, PPM.*\); convert it to one, or rep"
    with pytest.raises(UserError, match=message):
        open_picture(tmp_path / "other.jpg")
    with pytest.raises(UserError, match=message):
        open_picture("sent", content)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says to be so large, and holds a row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "content",
    [
        png_of_size(20_001, 15_000),
        png_of_size(2**31 - 1, 2**31 - 1),
        png_of_size(1, 300_000_001),
        b"P6 50000 50000 255\n" + bytes(100),
        saved(noise(), "GIF").replace(struct.pack("<HH", 40, 30), struct.pack("<HH", 65535, 65535), 1),
        saved(noise(), "BMP").replace(struct.pack("<ii", 40, 30), struct.pack("<ii", 40_000, 40_000)),
    ],
    ids=["PNG", "PNG of 2^62", "a ribbon", "PPM", "a GIF's screen", "BMP"],
)
def test_a_bomb_is_refused_before_it_is_decoded(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(content)
    began = time.process_time()
    with pytest.raises(
        UserError, match=r"bomb: more than 300,000,000 pixels; scale it down, or raise dataset.max_pixels"
    ):
        open_picture(tmp_path / "bomb")
    assert picture_damage(tmp_path / "bomb") is not None
    assert time.process_time() - began < 2
    with pytest.raises(UserError, match=re.escape("picture sent: more than 1,199 pixels; scale it down") + "$"):
        open_picture("sent", KINDS["PNG"], 1199)


def test_the_bound_is_a_setting_above_pils_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # more than twice as many are an error to PIL
    assert open_picture("p", KINDS["PNG"]).size == (40, 30)


def test_a_large_scan_opens(tmp_path: Path) -> None:
    Image.new("1", (20_000, 5_000)).save(tmp_path / "large.png")  # above PIL's own limit for a warning
    assert picture_damage(tmp_path / "large.png") is None


def test_a_file_too_long_for_its_pixels_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "hole.webp").open("wb") as file:
        file.write(KINDS["WEBP"])
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"hole\.webp: a file of 1,099,511,627,776 bytes, more than 300,000,000 pixels"):
        open_picture(tmp_path / "hole.webp")


def test_texts_that_unpack_to_fill_the_memory_are_refused() -> None:
    bomb = zlib.compress(bytes(80_000_000), 9)
    text = b"zTXt" + b"Comment\0\0" + bomb
    profile = b"iCCP" + b"profile\0\0" + bomb
    for chunk in (text, profile):
        whole = KINDS["PNG"]
        framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        with pytest.raises(UserError, match=r"damaged \(Decompressed data too large"):
            open_picture("p", whole[:33] + framed + whole[33:])


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    (tmp_path / "empty.png").touch()
    for path, message in [
        (tmp_path / "pipe.png", "pipe.png: cannot be read (is a pipe, where a regular file belongs); put"),
        (tmp_path, "cannot be read (is a folder, where a regular file belongs); put a picture there"),
        (Path("/dev/zero"), "/dev/zero: cannot be read (is a device"),
        (tmp_path / "loop.png", "loop.png: cannot be read (Too many levels of symbolic links)"),
        (tmp_path / "none.png", "none.png: no such file; put it back"),
        (tmp_path / "empty.png", "an empty file (0 bytes)"),
        (tmp_path / ("x" * 300), "cannot be read (File name too long)"),
        (Path("a\0b"), "cannot be read (its name holds a NUL character"),
        (tmp_path / "a\x1b[31m.png", r"a\x1b[31m.png: no such file"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            open_picture(path)
        assert str(caught.value).isprintable()
        assert picture_damage(path) == str(caught.value)

    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)  # whoever runs this may be root, to whom nothing is forbidden
    with pytest.raises(
        UserError,
        match=r"empty\.png: cannot be read \(Permission denied\); give this user permission to read it \(chmod u\+r it",
    ):
        open_picture(tmp_path / "empty.png")


def test_pils_warnings_do_not_reach_the_terminal(tmp_path: Path) -> None:
    content = bytearray(saved(noise(), "TIFF", exif=exif()))
    tag = content.index(struct.pack("<HH", 0x010E, 2))
    content[tag + 4 : tag + 8] = struct.pack("<I", 2**30)  # so many bytes are not there, which PIL warns of
    (tmp_path / "odd.tif").write_bytes(content)
    (tmp_path / "large.png").write_bytes(png_of_size(20_001, 15_000))
    code = (
        "import sys; from artkv.datasets.pictures import picture_damage\n"
        "print([picture_damage(path) for path in sys.argv[1:]])"
    )
    paths = [str(tmp_path / "odd.tif"), str(tmp_path / "large.png")]
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    assert "more than 300,000,000 pixels" in ran.stdout


def test_large_strips_give_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "alpha": saved(Image.merge("RGBA", [*noise().split(), noise().getchannel(1)]), "PNG"),
        **{name: KINDS[name] for name in ("transparent palette", "16 bits", "animated GIF")},
    }
    whole = {name: np.asarray(open_picture("p", content)) for name, content in kinds.items()}
    monkeypatch.setattr("artkv.datasets.decoding._PIXELS_A_STRIP", 100)
    for name, content in kinds.items():
        np.testing.assert_array_equal(np.asarray(open_picture("p", content)), whole[name])


def test_a_room_is_never_overfull_and_lets_the_largest_in_alone() -> None:
    room, seen, inside = Room(100), [], []
    lock = threading.Lock()

    def work(size: int) -> None:
        with room.take(size):
            with lock:
                inside.append(size)
                seen.append(list(inside))
            time.sleep(0.002)
            with lock:
                inside.remove(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in [30, 40, 50, 300, 20, 100, 60] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(seen) == len(threads)
    assert all(sum(sizes) <= 100 or len(sizes) == 1 for sizes in seen)
    assert any(len(sizes) > 1 for sizes in seen)


def test_a_room_is_given_back_after_an_error() -> None:
    room = Room(10)
    with pytest.raises(ValueError, match="inside"), room.take(10):
        raise ValueError("inside")
    with room.take(10):
        pass
