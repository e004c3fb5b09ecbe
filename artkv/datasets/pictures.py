"""Opens paintings and makes the views that the frozen encoders see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from artkv.datasets.decoding import MAX_PIXELS, decoded
from artkv.errors import UserError

_BLANK_GREY = 127
# Of longer to shorter side. An art encoder may see the centre square; scaled whole, one pixel times 20,000 would be
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


@dataclass(frozen=True)
class View:
    """What an encoder sees of a picture: a square of `size` pixels a side, in 0..1, normalised for each channel.

    is_whole: True: the whole picture, bicubic, squeezed to the square, as transformers' BlipImageProcessor does it.
    False: the shorter side to `size`, bicubic, then the middle, as timm's evaluation transform with crop_pct 1 does it.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_whole: bool

    def of(self, picture: Image.Image) -> Tensor:
        """(3, E, E) float32, from an RGB picture."""
        side = self.size
        square = (
            picture.resize((side, side), Image.Resampling.BICUBIC) if self.is_whole else _centre_square(picture, side)
        )
        return _normalised(square, _per_channel(self.mean), _per_channel(self.std))


def views_of(picture: Image.Image, views: Sequence[View]) -> tuple[Tensor, ...]:
    """Each of the views, (3, E, E) float32; equal ones are one tensor."""
    made = {view: view.of(picture) for view in dict.fromkeys(views)}
    return tuple(made[view] for view in views)


def blank_views(views: Sequence[View]) -> tuple[Tensor, ...]:
    """The views of a plain mid-grey picture, which tells nothing of a painting."""
    side = max(view.size for view in views)
    return views_of(Image.new("RGB", (side, side), (_BLANK_GREY,) * 3), views)


class PaintingTransform:
    """Makes the views of the ViT and of the art encoders from one decoded picture.

    vit: the ViT's view. art: of each art encoder. max_pixels: of a picture that `views` decodes.
    """

    def __init__(self, vit: View, art: Sequence[View] = (), max_pixels: int = MAX_PIXELS) -> None:
        self.vit, self.art = vit, tuple(art)
        self.max_pixels = max_pixels

    def __call__(self, picture: Image.Image) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(3, E, E) float32 for the ViT, and for each art encoder, from an RGB picture."""
        vit_view, *art_views = views_of(picture, (self.vit, *self.art))
        return vit_view, tuple(art_views)

    def views(self, path: Path, content: bytes | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All views of a picture in a file; see `decoded`, which raises `UserError`."""
        with decoded(path, content, self.max_pixels) as picture:
            return self(picture)

    def vit_view(self, picture: Image.Image) -> Tensor:
        """(3, E, E) float32."""
        return self.vit.of(picture)

    def art_views(self, picture: Image.Image) -> tuple[Tensor, ...]:
        """Each (3, E, E) float32."""
        return views_of(picture, self.art)

    def blank(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The views of a plain mid-grey picture."""
        vit_view, *art_views = blank_views((self.vit, *self.art))
        return vit_view, tuple(art_views)


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
