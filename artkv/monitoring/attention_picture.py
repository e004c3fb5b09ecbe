"""Draws where attention lies over a painting, and which heads give how much of it to the prefix."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# From no attention to the most, as of matplotlib's inferno: brightness alone tells them apart, also in grey.
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
# Pixels of a head's cell and of the names around them.
_CELL_WIDTH, _CELL_HEIGHT, _NAMES_WIDTH, _NAMES_HEIGHT, _CELL_FONT = 52, 36, 84, 30, 15
# Of the painting's own brightness, so that it can be made out under the colours.
_OPACITY = 0.65


@dataclass(frozen=True)
class Looks:
    """Where a model looks in a painting; see `artkv.evaluation.attention.PaintingAttention`.

    map_on, map_off: (g, g), with the prefix and without; map_on is None for a model without a prefix.
    mass: of the attention, what lies on the prefix; the mean over layers and heads. None where it takes none.
    """

    map_on: NDArray[np.float64] | None
    map_off: NDArray[np.float64]
    mass: float | None

    def captions(self) -> list[str]:
        """A line for each overlay, in the order of `overlays`."""
        if self.map_on is None:
            return ["no prefix"]
        share = "" if self.mass is None else f" ({self.mass:.1%} of attention on it)"
        return [f"prefix on{share}", "prefix off"]


def overlays(picture: Image.Image, looks: Looks) -> list[Image.Image]:
    """The picture under the map with the prefix on and under that with it off, of the picture's size.

    Both are coloured on one scale, from 0 to the brightest patch of either. A map's patches are drawn as they are, as
    the ViT cuts the whole picture, squeezed to a square.
    """
    maps = [patches for patches in (looks.map_on, looks.map_off) if patches is not None]
    brightest = max(float(patches.max()) for patches in maps)
    return [_overlay(picture, patches / brightest) for patches in maps]


def draw_masses(mass_ZH: NDArray[np.float64]) -> NDArray[np.uint8]:
    """What of each head's attention lies on the prefix, a row a layer, in percent; (height, width, 3) from 0 to 255.

    The colours are those of 0 to 1, so that pictures of one step and of another can be held together. Below a gate of
    0 masses are negative, and have the colour of 0.
    """
    layers, heads = mass_ZH.shape
    font = ImageFont.load_default(_CELL_FONT)
    size = (_NAMES_WIDTH + heads * _CELL_WIDTH, _NAMES_HEIGHT + layers * _CELL_HEIGHT)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    colours_ZHC = _coloured(mass_ZH)

    def write(text: str, column: float, row: float, fill: str) -> None:
        """In the middle of a cell; the names are in column and row -1."""
        x = _NAMES_WIDTH / 2 if column < 0 else _NAMES_WIDTH + (column + 0.5) * _CELL_WIDTH
        y = _NAMES_HEIGHT / 2 if row < 0 else _NAMES_HEIGHT + (row + 0.5) * _CELL_HEIGHT
        draw.text((x, y), text, fill=fill, font=font, anchor="mm")

    for head in range(heads):
        write(f"head {head}" if head == 0 else str(head), head, -1, "black")
    for layer in range(layers):
        write(f"layer {layer}", -1, layer, "black")
        for head in range(heads):
            left, top = _NAMES_WIDTH + head * _CELL_WIDTH, _NAMES_HEIGHT + layer * _CELL_HEIGHT
            red, green, blue = (int(value) for value in colours_ZHC[layer, head])
            draw.rectangle((left, top, left + _CELL_WIDTH - 2, top + _CELL_HEIGHT - 2), fill=(red, green, blue))
            is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > 128
            write(f"{100 * mass_ZH[layer, head]:.0f}", head, layer, "black" if is_bright else "white")
    return np.asarray(canvas)


def _coloured(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A colour for each of some numbers from 0 to 1, along a last axis; others have that of the nearer end."""
    places = np.clip(shares, 0, 1) * (len(_COLOURS) - 1)
    stops = np.arange(len(_COLOURS))
    colours = np.stack([np.interp(places, stops, _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    return colours.round().astype(np.uint8)


def _overlay(picture: Image.Image, patches: NDArray[np.float64]) -> Image.Image:
    """patches: (g, g) from 0 to 1."""
    coloured = Image.fromarray(_coloured(patches)).resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), coloured, _OPACITY)
