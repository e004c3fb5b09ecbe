"""Decoding by pixel value, and the two views against transformers' and timm's own preprocessing."""

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from transformers import BlipImageProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from artkv.datasets.decoding import upright_rgb
from artkv.datasets.pictures import PaintingTransform, View, central_part, open_picture, picture_damage
from artkv.errors import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXIF_ORIENTATION = 0x0112


def transform(vit_size: int, art_size: int) -> PaintingTransform:
    return PaintingTransform(
        View(vit_size, tuple(CLIP_MEAN), tuple(CLIP_STD), is_whole=True),
        [View(art_size, tuple(IMAGENET_MEAN), tuple(IMAGENET_STD), is_whole=False)],
    )


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise: what a painting's pixels are like, and nothing that a resize could hide."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(path: Path) -> np.ndarray:
    picture = open_picture(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def write_png16(path: Path, values: np.ndarray) -> None:
    """A 16-bit PNG written by hand, of (H, W, C) values, C 1 to 4, independent of PIL's writer."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    raw = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# What each EXIF orientation does to the stored pixels, from the EXIF standard: (row, column) of the
# upright picture as stored.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    np.testing.assert_array_equal(pixels_of(path), UPRIGHT[orientation](stored))


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 16), "red")
    picture.paste("blue", (0, 0, 16, 16))  # blue on the left, stored lying on its side
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # turned clockwise to be upright: the left side comes to the top
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels = pixels_of(tmp_path / "turned.jpg")
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8, 2] > 200 > 50 > pixels[4, 8, 0]
    assert pixels[28, 8, 0] > 200 > 50 > pixels[28, 8, 2]


def test_grey_and_bilevel(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 90, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "grey.png")[0], [[0] * 3, [90] * 3, [255] * 3])
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    bilevel.save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "bilevel.png")[0], [[0] * 3, [255] * 3])


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 20, 30, 40, 250])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "palette.png")[0], [[200, 10, 20], [30, 40, 250]])
    palette.save(tmp_path / "clear.png", transparency=0)
    np.testing.assert_array_equal(pixels_of(tmp_path / "clear.png")[0], [[255, 255, 255], [30, 40, 250]])
    palette.save(tmp_path / "clear.gif", transparency=1)
    np.testing.assert_array_equal(pixels_of(tmp_path / "clear.gif")[0], [[200, 10, 20], [255, 255, 255]])


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (3, 1))
    clear.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 100, 200, 51)])  # 51 / 255 = 0.2
    clear.save(tmp_path / "rgba.png")
    expected = [[10, 20, 30], [255, 255, 255], [204, 224, 244]]  # 0.2 * colour + 0.8 * 255
    np.testing.assert_allclose(pixels_of(tmp_path / "rgba.png")[0], expected, atol=1)
    Image.new("LA", (1, 1), (100, 51)).save(tmp_path / "la.png")
    np.testing.assert_allclose(pixels_of(tmp_path / "la.png")[0, 0], [224] * 3, atol=1)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(pixels_of(tmp_path / "key.png")[0, 0], [255] * 3)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    # PIL writes CMYK JPEGs inverted with Adobe's marker, as Photoshop does.
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"red.{suffix}")
    np.testing.assert_allclose(pixels_of(tmp_path / f"red.{suffix}")[8, 8], [255, 0, 0], atol=3)
    Image.new("CMYK", (16, 16), (0, 0, 0, 55)).save(tmp_path / f"light.{suffix}")
    np.testing.assert_allclose(pixels_of(tmp_path / f"light.{suffix}")[8, 8], [200] * 3, atol=3)


def test_16_bit_grey_is_scaled_over_its_full_range(tmp_path: Path) -> None:
    values = np.array([[[0], [257], [25700], [32896], [65535]]])
    write_png16(tmp_path / "deep.png", values)
    np.testing.assert_array_equal(pixels_of(tmp_path / "deep.png")[0, :, 0], [0, 1, 100, 128, 255])
    for name, dtype in [("deep.tif", np.uint16), ("deep32.tif", np.int32)]:
        Image.fromarray(values[:, :, 0].astype(dtype)).save(tmp_path / name)
        np.testing.assert_array_equal(pixels_of(tmp_path / name)[0, :, 2], [0, 1, 100, 128, 255])
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([25700, 65535]).astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels_of(tmp_path / "deep.pgm")[0, :, 0], [100, 255])


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_and_alpha(tmp_path: Path, channels: int) -> None:
    write_png16(tmp_path / "deep.png", np.full((2, 2, channels), 32896))
    on_white = 191 if channels in (2, 4) else 128  # half-transparent mid-grey over white
    np.testing.assert_allclose(pixels_of(tmp_path / "deep.png"), on_white, atol=1)


def test_floating_point_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(pixels_of(tmp_path / "f.tif")[0, :, 1], [0, 51, 255])
    for values in ([[0.0, 80.0]], [[np.nan, 0.5]], [[-1.0, 1.0]]):
        Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "f.tif")
        with pytest.raises(UserError, match=r"f\.tif.*expected 0 to 1; convert it"):
            open_picture(tmp_path / "f.tif")


@pytest.mark.parametrize("values", [[[0, 200]], [[0, 70000]], [[-5, 9000]]])
def test_32_bit_grey_of_unknown_range_is_refused_not_black(tmp_path: Path, values: list[list[int]]) -> None:
    Image.fromarray(np.array(values, dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif.*32-bit grey.*convert it"):
        open_picture(tmp_path / "deep.tif")


def test_other_colour_spaces(tmp_path: Path) -> None:
    Image.new("LAB", (2, 2), (255, 128, 128)).save(tmp_path / "lab.tif")  # the lightest, neither red nor blue
    np.testing.assert_allclose(pixels_of(tmp_path / "lab.tif"), 255, atol=3)
    Image.new("YCbCr", (16, 16), (76, 85, 255)).save(tmp_path / "red.jpg")  # JFIF's formula for pure red
    np.testing.assert_allclose(pixels_of(tmp_path / "red.jpg")[8, 8], [255, 0, 0], atol=4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp"])
def test_truncated_files_are_errors(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another library may have asked PIL to be lenient; a half-grey painting must not pass all the same.
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / f"cut.{suffix}"
    random_picture(200, 160).save(path)
    assert picture_damage(path) is None
    data = path.read_bytes()
    for kept in (0.95, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(UserError, match=rf"cut\.{suffix}: .*; replace the file"):
            open_picture(path)
        assert picture_damage(path) is not None


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_that_was_turned_is_not_turned_again(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    random_picture(40, 30).save(tmp_path / f"turned.{suffix}", exif=exif)
    once = open_picture(tmp_path / f"turned.{suffix}")
    assert once.size == (30, 40)
    np.testing.assert_array_equal(np.asarray(upright_rgb(once)), np.asarray(once))


SHAPES = [(300, 200), (200, 300), (97, 401), (64, 64), (53, 47)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_vit_view_equals_transformers(width: int, height: int) -> None:
    picture = random_picture(width, height)
    view = transform(56, 40)(picture)[0]
    size = {"height": 56, "width": 56}
    stock = BlipImageProcessorPil(size=size)(picture, return_tensors="pt")["pixel_values"][0]
    # The same pixels from PIL; the rest is rounding in the normalisation.
    torch.testing.assert_close(view, stock, rtol=0, atol=2e-6)
    # The torchvision backend's resize may round a pixel the other way: one level of 255, over std 0.26.
    stock = BlipImageProcessor(size=size)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(view, stock, rtol=0, atol=1.01 / 255 / 0.26)


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("size", [40, 64, 75])
def test_efficientnet_view_equals_timm(width: int, height: int, size: int) -> None:
    picture = random_picture(width, height)
    view = transform(56, size)(picture)[1][0]
    stock = create_transform(
        input_size=size, is_training=False, interpolation="bicubic", crop_pct=1.0,
        mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip
    torch.testing.assert_close(view, stock(picture), rtol=0, atol=1e-6)


def test_blank_is_mid_grey_in_both_views() -> None:
    vit_view, (art_view,) = transform(8, 12).blank()
    for view, size, mean, std in zip(
        (vit_view, art_view), (8, 12), (CLIP_MEAN, IMAGENET_MEAN), (CLIP_STD, IMAGENET_STD), strict=True
    ):
        assert view.shape == (3, size, size)
        assert view.dtype == torch.float32
        for channel in range(3):
            expected = (127 / 255 - mean[channel]) / std[channel]
            torch.testing.assert_close(view[channel], torch.full((size, size), expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(40, 3), (3, 40), (150, 3), (151, 3), (20, 1)])
def test_what_is_no_ribbon_is_left_whole(width: int, height: int) -> None:
    picture = random_picture(width, height)
    assert (central_part(picture) is picture) == (max(width, height) <= 50 * min(width, height) + 1)


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize(("shorter", "longer"), [(3, 400), (3, 401), (2, 301)])
def test_a_ribbons_view_is_its_centres(shorter: int, longer: int, is_wide: bool) -> None:
    picture = random_picture(*((longer, shorter) if is_wide else (shorter, longer)))
    view = transform(8, 32)(picture)[1][0]
    stock = create_transform(
        input_size=32, is_training=False, interpolation="bicubic", crop_pct=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    # The length of the part that is cut is rounded otherwise than that of the whole, by a pixel of the view at most:
    # the worst difference seen is 0.07 of a range of 4.4, in a picture whose pixels differ by half of it.
    torch.testing.assert_close(view, stock(picture), rtol=0, atol=0.15)


def test_a_ribbon_takes_little_memory() -> None:
    ribbon = Image.new("RGB", (1, 20_000), (10, 20, 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    view = transform(8, 300)(ribbon)[1][0]
    assert view.shape == (3, 300, 300)
    # KiB; scaled whole it was 7 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
