"""Opens paintings and makes the two views that the frozen encoders see."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from artkv.datasets.decoding import MAX_PIXELS, decoded
from artkv.errors import UserError

_BLANK_GREY = 127
# Of longer to shorter side. The EfficientNet sees the centre square; scaled whole, one pixel times 20,000 would be
# 8 GB at 300 pixels.
_MOST_STRETCHED = 50


def open_picture(path: Path | str, content: bytes | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a picture into 8-bit RGB, to be kept; see `decoded`, which raises `UserError`."""
    with decoded(path, content, max_pixels) as picture:
        return picture


def picture_damage(path: Path | str, max_pixels: int = MAX_PIXELS) -> str | None:
    """What keeps `open_picture` from decoding a file, or None if nothing does.

    JPEGs are decoded at an eighth of their size: all of the file is read, in a fraction of the time.
    """
    try:
        with decoded(path, max_pixels=max_pixels, small=True):
            return None
    except UserError as error:
        return str(error)


def central_part(picture: Image.Image) -> Image.Image:
    """The picture, or of one more than fifty times as long as wide the middle: what a square of its centre is cut from.

    As much is cut off at both ends, so the centre stays where it is.
    """
    shorter, longer = sorted(picture.size)
    cut = (longer - _MOST_STRETCHED * shorter) // 2
    if cut <= 0:
        return picture
    width, height = picture.size
    return picture.crop((cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut))


class PaintingTransform:
    """Makes the views of the ViT and of the EfficientNet from one decoded picture.

    The ViT's is that of transformers' BlipImageProcessor: the whole picture, bicubic, squeezed to
    (vit_size, vit_size). The EfficientNet's is that of timm's evaluation transform with crop_pct 1: the
    shorter side to efficientnet_size, bicubic, then the centre square. Both are scaled to 0..1 and
    normalised by the mean and std of each channel.

    max_pixels: of a picture that `views` decodes.
    """

    def __init__(
        self,
        vit_size: int,
        vit_mean: Sequence[float],
        vit_std: Sequence[float],
        efficientnet_size: int,
        efficientnet_mean: Sequence[float],
        efficientnet_std: Sequence[float],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self.vit_size = vit_size
        self.efficientnet_size = efficientnet_size
        self._vit_mean, self._vit_std = _per_channel(vit_mean), _per_channel(vit_std)
        self._efficientnet_mean = _per_channel(efficientnet_mean)
        self._efficientnet_std = _per_channel(efficientnet_std)

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        """(3, S, S) and (3, E, E) float32, from an RGB picture."""
        return self.vit_view(picture), self.efficientnet_view(picture)

    def views(self, path: Path, content: bytes | None = None) -> tuple[Tensor, Tensor]:
        """Both views of a picture in a file; see `decoded`, which raises `UserError`."""
        with decoded(path, content, self.max_pixels) as picture:
            return self(picture)

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


def _centre_square(picture: Image.Image, side: int) -> Image.Image:
    """The shorter side scaled to `side`, then the middle; rounding as in torchvision's Resize and CenterCrop."""
    picture = central_part(picture)
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
