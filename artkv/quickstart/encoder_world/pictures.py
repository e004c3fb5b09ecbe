"""Paintings with brushwork in the green channel alone and a harmony of colours in red and blue alone.

A scene is painted twice, side by side, in one style or in two. Neither a half's style nor the harmony changes what a
look at `COARSE_SIDE` pixels sees, and no style changes a byte of red and blue, no harmony one of green.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artkv.quickstart.paintings import BRUSHWORK, STYLES, keep_coarse_look
from artkv.quickstart.underpainting import SIDE, Array, Composition, underpainting

HARMONIES = ("analogous", "complementary", "triadic")
SCHOOLS = ("florentine", "venetian", "flemish")

# ImageNet's, which is what an encoder of artkv's subtracts: a channel that holds it is 0 to a network.
_MEAN = (124, 116, 104)
# The channels that each encoder sees; to the others it is blind.
GREEN, RED_AND_BLUE = (1,), (0, 2)
ENCODERS = {"brushwork": GREEN, "harmony": RED_AND_BLUE}
_AMPLITUDE = 0.13
# The grey of the wall.
_WALL = 0.45


@dataclass(frozen=True)
class Work:
    """A painting: what it shows, the style of each half, its harmony."""

    composition: Composition
    left: str
    right: str
    harmony: str

    @property
    def is_diptych(self) -> bool:
        """Whether its halves differ."""
        return self.left != self.right

    @property
    def school(self) -> str:
        """Of a painting in one style; a Latin square, so that style or harmony alone says nothing of it."""
        return school_of(self.left, self.harmony)


def school_of(style: str, harmony: str) -> str:
    """The school that paints in this style with this harmony."""
    return SCHOOLS[(STYLES.index(style) + HARMONIES.index(harmony)) % len(SCHOOLS)]


def works_of(compositions: list[Composition]) -> Iterator[Work]:
    """Six diptychs and nine paintings in one style of each composition.

    In a composition's diptychs each style is left once and right once, and each pair is there in both orders. Its other
    paintings are three styles that lie in different rows of the Latin square, each with each harmony.
    """
    for number, composition in enumerate(compositions):
        order = np.random.default_rng([composition.seed, 1]).permutation(len(STYLES))
        for place, (first, second) in enumerate(order.reshape(-1, 2)):
            harmony = HARMONIES[(number + place) % len(HARMONIES)]
            for left, right in ((first, second), (second, first)):
                yield Work(composition, STYLES[left], STYLES[right], harmony)
        chosen = STYLES[:3] if number % 2 == 0 else STYLES[3:]
        for style, harmony in itertools.product(chosen, HARMONIES):
            yield Work(composition, style, style, harmony)


def paint_work(work: Work, side: int = SIDE) -> Image.Image:
    """Paints a work, a square RGB picture of `side` pixels, 128 or twice that: one scene in two panels on a grey wall.

    The green of a panel is the same bytes on either side, and each panel fills what one column of the encoder's places
    sees (`ARCHITECTURE` in settings.py): so the mean over places is the same for both orders of two styles.
    """
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[..., [0, 2]] = _in_red_and_blue(work.composition, work.harmony, side)
    pixels[..., 1] = round(_WALL * 255)
    for style, columns in zip((work.left, work.right), _panels(side)[1:], strict=True):
        pixels[_panels(side)[0], columns, 1] = _brushed(work.composition, style, side)
    return Image.fromarray(pixels)


def only(picture: Image.Image, channels: tuple[int, ...]) -> Image.Image:
    """The picture as an encoder sees it whose view is blind to all channels but these."""
    pixels = np.empty((*picture.size[::-1], 3), np.uint8)
    pixels[:] = _MEAN
    pixels[..., list(channels)] = np.asarray(picture)[..., list(channels)]
    return Image.fromarray(pixels)


def _panels(side: int) -> tuple[slice, slice, slice]:
    """The rows of both panels, and the columns of the left and of the right one.

    Of 128 pixels a network of five strides of 2, whose kernels have 3 pixels, sees -1 to 31, 31 to 63, 63 to 95 and 95
    to 127; the first column of places sees the zeros beyond the edge, as no other does.
    """
    unit, edge = side // 128, 31 * side // 128
    return slice(16 * unit, 112 * unit), slice(32 * unit, 32 * unit + edge), slice(96 * unit, 96 * unit + edge)


def _twice(scene: Array) -> Array:
    """The middle of a square scene in both panels on the wall, in the same shape."""
    side = len(scene)
    rows, left, right = _panels(side)
    hung = np.full_like(scene, _WALL)
    middle = slice(left.start + side // 8, left.stop + side // 8)
    hung[rows, left] = hung[rows, right] = scene[rows, middle]
    return hung


@lru_cache(maxsize=1024)  # a composition's works share it, and come in any order; 3 KiB each
def _brushed(composition: Composition, style: str, side: int) -> NDArray[np.uint8]:
    """The green of a panel of a composition in a style, (rows, columns)."""
    scene = underpainting(composition, side)
    rng = np.random.default_rng([composition.seed, STYLES.index(style)])
    kept = keep_coarse_look(_twice(BRUSHWORK[style](scene, rng)[..., 1:2]), _twice(scene[..., 1:2]))
    return _bytes(kept)[_panels(side)[:2]][..., 0]


def _in_red_and_blue(composition: Composition, harmony: str, side: int) -> NDArray[np.uint8]:
    base = _twice(underpainting(composition, side))
    texture = _texture(harmony, side, np.random.default_rng([composition.seed, 2]))
    return _bytes(keep_coarse_look(base + texture, base))[..., [0, 2]]


def _bytes(picture: Array) -> NDArray[np.uint8]:
    return np.round(picture * 255).astype(np.uint8)


def _texture(harmony: str, side: int, rng: np.random.Generator) -> Array:
    """Fine specks of red and blue, (side, side, 3): equal, opposite, or each of its own."""
    cells = side * 2 // 5
    specks = [
        np.asarray(
            Image.fromarray(rng.choice([-1.0, 1.0], (cells, cells)).astype(np.float32)).resize(
                (side, side), Image.Resampling.BILINEAR
            )
        )
        for _ in range(2)
    ]
    texture = np.zeros((side, side, 3), np.float32)
    texture[..., 0] = specks[0]
    texture[..., 2] = {"analogous": specks[0], "complementary": -specks[0], "triadic": specks[1]}[harmony]
    return np.float32(_AMPLITUDE) * texture
