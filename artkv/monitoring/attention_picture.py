"""Draws where attention lies over a painting."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From no attention to the most, as of matplotlib's inferno: brightness alone tells them apart, also in grey.
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
# Of the painting's own brightness, so that it can be made out under the colours.
_OPACITY = 0.65


@dataclass(frozen=True)
class Looks:
    """Where a model looks in a painting; see `artkv.evaluation.attention.PaintingAttention`.

    map_on, map_off: (g, g), with the prefix and without; map_on is None for a model without a prefix.
    mass: of the attention, what lies on the prefix; the mean over layers and heads.
    """

    map_on: NDArray[np.float64] | None
    map_off: NDArray[np.float64]
    mass: float

    def captions(self) -> list[str]:
        """A line for each overlay, in the order of `overlays`."""
        if self.map_on is None:
            return ["no prefix"]
        return [f"prefix on ({self.mass:.1%} of attention on it)", "prefix off"]


def overlays(picture: Image.Image, looks: Looks) -> list[Image.Image]:
    """The picture under the map with the prefix on and under that with it off, of the picture's size.

    Both are coloured on one scale, from 0 to the brightest patch of either. A map's patches are drawn as they are, as
    the ViT cuts the whole picture, squeezed to a square.
    """
    maps = [patches for patches in (looks.map_on, looks.map_off) if patches is not None]
    brightest = max(float(patches.max()) for patches in maps)
    return [_overlay(picture, patches / brightest) for patches in maps]


def _overlay(picture: Image.Image, patches: NDArray[np.float64]) -> Image.Image:
    """patches: (g, g) from 0 to 1."""
    places = np.clip(patches, 0, 1) * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    colours = np.stack([np.interp(places, stops, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    coloured = Image.fromarray(colours.round().astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), coloured, _OPACITY)
