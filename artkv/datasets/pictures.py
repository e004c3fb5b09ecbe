"""Decodes paintings of every usual kind and makes the two views that the frozen encoders see."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from artkv.errors import UserError

# Museum scans of 200 million pixels are real. PIL warns above its limit (89 million by default) and
# refuses above twice the limit, as a guard against small files that unpack to fill the memory; this
# guard warns from 250 million pixels on and refuses from 500 million on, 1.5 GB as RGB.
MAX_PIXELS = 500_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2

# PIL knows some fifty more, most of them tried by nobody, and hands EPS files to Ghostscript, which runs them.
UPLOADED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")

_EXIF_ORIENTATION = 0x0112
_TURN_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REPLACE = "replace the file with an undamaged copy"
_CONVERT = "convert it to an 8-bit RGB PNG or JPEG"
_BLANK_GREY = 127


def open_picture(path: Path | str, content: bytes | None = None) -> Image.Image:
    """Decodes a picture into 8-bit RGB, the right way up. content: the file's bytes, where they were read before.

    Transparent parts come out white; 16-bit pictures are scaled over their full range, not clipped.
    Raises `UserError` with the file's name and a remedy for anything that cannot be decoded to its end.
    """
    return _decode(Path(path), small=False, content=content)


def open_upload(name: str, content: bytes, max_pixels: int) -> Image.Image:
    """`open_picture` of bytes that came from somebody else.

    Their format is one of `UPLOADED_FORMATS`, and their pixels are `max_pixels` at most, else nothing is decoded.
    """
    return _decode(Path(name), small=False, content=content, max_pixels=max_pixels, formats=UPLOADED_FORMATS)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture as 8-bit RGB, turned as its EXIF says, transparency on white; see `open_picture`."""
    turn = _TURN_OF_ORIENTATION.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    rgb = _as_rgb(image)
    upright = rgb if turn is None else rgb.transpose(turn)
    upright.info.clear()  # with the orientation in it, the result would be turned once more if it were handed in again
    return upright


def picture_damage(path: Path | str) -> str | None:
    """What keeps `open_picture` from decoding a file, or None if nothing does.

    JPEGs are decoded at an eighth of their size: all of the file is read, in a fraction of the time.
    """
    try:
        _decode(Path(path), small=True)
    except UserError as error:
        return str(error)
    return None


class PaintingTransform:
    """Makes the views of the ViT and of the EfficientNet from one decoded picture.

    The ViT's is that of transformers' BlipImageProcessor: the whole picture, bicubic, squeezed to
    (vit_size, vit_size). The EfficientNet's is that of timm's evaluation transform with crop_pct 1: the
    shorter side to efficientnet_size, bicubic, then the centre square. Both are scaled to 0..1 and
    normalised by the mean and std of each channel.
    """

    def __init__(
        self,
        vit_size: int,
        vit_mean: Sequence[float],
        vit_std: Sequence[float],
        efficientnet_size: int,
        efficientnet_mean: Sequence[float],
        efficientnet_std: Sequence[float],
    ) -> None:
        self.vit_size = vit_size
        self.efficientnet_size = efficientnet_size
        self._vit_mean, self._vit_std = _per_channel(vit_mean), _per_channel(vit_std)
        self._efficientnet_mean = _per_channel(efficientnet_mean)
        self._efficientnet_std = _per_channel(efficientnet_std)

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        """(3, S, S) and (3, E, E) float32, from an RGB picture."""
        return self.vit_view(picture), self.efficientnet_view(picture)

    def vit_view(self, picture: Image.Image) -> Tensor:
        """(3, S, S) float32."""
        squeezed = picture.resize((self.vit_size, self.vit_size), Image.Resampling.BICUBIC)
        return _normalised(squeezed, self._vit_mean, self._vit_std)

    def efficientnet_view(self, picture: Image.Image) -> Tensor:
        """(3, E, E) float32."""
        centre = _centre_square(picture, self.efficientnet_size)
        return _normalised(centre, self._efficientnet_mean, self._efficientnet_std)

    def blank(self) -> tuple[Tensor, Tensor]:
        """The views of a plain mid-grey picture, which tells nothing of the painting."""
        side = max(self.vit_size, self.efficientnet_size)
        return self(Image.new("RGB", (side, side), (_BLANK_GREY,) * 3))


def _decode(
    path: Path,
    small: bool,
    content: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries switch it on; half a painting is grey below
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError
            if small and image.format == "JPEG":
                image.draft(None, (1, 1))
            # The orientation is read after loading: TIFFs are turned while they load, PNGs may tell it last.
            image.load()
            return upright_rgb(image)
    except UserError as error:
        raise UserError(f"picture {path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"picture {path}: no such file; put it back") from None
    except PermissionError:
        raise UserError(f"picture {path}: no permission to read it; chmod +r it") from None
    except UnidentifiedImageError:
        num_bytes = path.stat().st_size if content is None else len(content)
        known = "a known format" if formats is None else f"a known format ({', '.join(formats)})"
        reason = "an empty file (0 bytes)" if num_bytes == 0 else f"not a picture of {known}"
        raise UserError(f"picture {path}: {reason}; {_REPLACE}") from None
    except Image.DecompressionBombError:
        raise UserError(f"picture {path}: more than {max_pixels:,} pixels; scale it down") from None
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"picture {path}: damaged ({error}); {_REPLACE}") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey_as_rgb(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _deep_grey_as_rgb(image: Image.Image) -> Image.Image:
    """Scales grey of more than 8 bits to 8; PIL's own conversion clips at 255, which gives white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise UserError(f"floating-point grey from {low} to {high}, expected 0 to 1; {_CONVERT}")
        grey = np.rint(values * 255)
    else:
        # Mode I holds 16-bit PNGs and PGMs, but also 32-bit TIFFs, whose white could be anywhere.
        if image.mode == "I" and not (low >= 0 and 255 < high <= 65535):
            raise UserError(f"32-bit grey from {low} to {high}, expected 16 bits; {_CONVERT}")
        grey = np.rint(values / 257)  # 65535 = 255 * 257
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _centre_square(picture: Image.Image, side: int) -> Image.Image:
    """The shorter side scaled to `side`, then the middle; rounding as in torchvision's Resize and CenterCrop."""
    width, height = picture.size
    shorter, longer = min(width, height), max(width, height)
    scaled = int(side * longer / shorter)
    new_size = (side, scaled) if width <= height else (scaled, side)
    if new_size != picture.size:
        picture = picture.resize(new_size, Image.Resampling.BICUBIC)
    left, top = round((new_size[0] - side) / 2.0), round((new_size[1] - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))


def _per_channel(values: Sequence[float]) -> np.ndarray:
    return np.array(list(values), dtype=np.float32)[:, None, None]


def _normalised(picture: Image.Image, mean: np.ndarray, std: np.ndarray) -> Tensor:
    # In NumPy, because threads that prepare batches would each start PyTorch's own threads for this.
    pixels_3EE = np.asarray(picture).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels_3EE /= 255
    pixels_3EE -= mean
    pixels_3EE /= std
    return torch.from_numpy(pixels_3EE)
