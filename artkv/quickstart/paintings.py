"""Paintings made from a seed: what they show is coarse, the style is in the brushwork only.

A composition (subject, colour, time of day) is laid in as a smooth underpainting. A style then puts its
brushwork over it and may not change what a coarse look sees: the painting, scaled down to
`COARSE_SIDE` pixels, equals the scaled-down underpainting. So a vision encoder that is given no
more than that cannot know the style, however it is trained, while at full size the styles are plain to see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artkv.quickstart.underpainting import SIDE, Array, Composition, underpainting

# Scaled down to so many pixels (bicubic, antialiased, as PIL and torchvision do it) all styles look the same.
COARSE_SIDE = 16


def paint(composition: Composition, style: str, side: int = SIDE) -> Image.Image:
    """Paints `composition` in `style`, a square RGB picture of `side` pixels."""
    base = underpainting(composition, side)
    rng = np.random.default_rng([composition.seed, STYLES.index(style)])
    painted = keep_coarse_look(BRUSHWORK[style](base, rng), base)
    return Image.fromarray(np.round(painted * 255).astype(np.uint8))


# Each brushwork takes the underpainting and returns it with its own fine texture.


def keep_coarse_look(painted: Array, base: Array) -> Array:
    """The painting nearest to `painted` that looks as `base` does when scaled down to `COARSE_SIDE`."""
    down, up = _scaling(base.shape[0])
    for _ in range(3):  # again, because clipping to what a pixel can hold disturbs it a little
        difference = _along_both_axes(down, base - painted)
        painted = np.clip(painted + _along_both_axes(up, difference), 0, 1)
    return painted.astype(np.float32)


def _along_both_axes(matrix: Array, picture: Array) -> Array:
    """`matrix` applied to the columns and to the rows of a picture (height, width, channels).

    einsum and not `@`: threads of BLAS are slow to start for so little, and another number of threads may
    round in another way.
    """
    height, width, channels = picture.shape
    tall = np.einsum("ah,hk->ak", matrix, picture.reshape(height, -1)).reshape(-1, width, channels)
    turned = np.ascontiguousarray(tall.transpose(1, 0, 2)).reshape(width, -1)
    return np.einsum("bw,wk->bk", matrix, turned).reshape(-1, len(tall), channels).transpose(1, 0, 2)


@lru_cache(maxsize=4)
def _scaling(side: int) -> tuple[Array, Array]:
    """PIL's bicubic downscaling to `COARSE_SIDE` as a matrix, and its pseudo-inverse."""
    columns = [
        np.asarray(Image.fromarray(row[None, :]).resize((COARSE_SIDE, 1), Image.Resampling.BICUBIC))[0]
        for row in np.eye(side, dtype=np.float32)
    ]
    down = np.stack(columns, axis=1)
    return down, np.linalg.pinv(down).astype(np.float32)


@dataclass(frozen=True)
class _Cells:
    """A division of the canvas into cells around scattered points, (side, side) each."""

    y: Array  # the cell's point
    x: Array
    distance: Array  # from the cell's point, in pixels
    to_border: Array  # how much further the next nearest point is, in pixels
    key: NDArray[np.int64]  # the cell's number

    def choose(self, values: Array) -> Array:
        """One of `values` for each cell."""
        return values[self.key % len(values)]

    def colour(self, base: Array) -> Array:
        """The colour of `base` under the cell's point."""
        last = base.shape[0] - 1
        return base[
            np.clip(np.round(self.y), 0, last).astype(np.int64), np.clip(np.round(self.x), 0, last).astype(np.int64)
        ]


def _divide(side: int, period: float, jitter: float, angle: float, rng: np.random.Generator) -> _Cells:
    """Cells around the points of a square grid turned by `angle`, each moved by up to `jitter` periods."""
    ys, xs = _pixels(side)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift_u, shift_v = rng.uniform(0, 1, 2)
    u, v = (xs * cos + ys * sin) / period + shift_u, (ys * cos - xs * sin) / period + shift_v
    moves = rng.uniform(-jitter, jitter, (64, 64, 2)).astype(np.float32)
    column, row = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    nearest = np.full((side, side), np.inf, np.float32)
    second, point_u, point_v = nearest.copy(), np.zeros_like(nearest), np.zeros_like(nearest)
    key = np.zeros((side, side), np.int64)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            i, j = row + down, column + across
            move = moves[i % 64, j % 64]
            pu, pv = j + 0.5 + move[..., 0], i + 0.5 + move[..., 1]
            distance = np.hypot(u - pu, v - pv).astype(np.float32)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            point_u, point_v = np.where(closer, pu, point_u), np.where(closer, pv, point_v)
            key = np.where(closer, i * 7919 + j * 104729, key)
    du, dv = (point_u - shift_u) * period, (point_v - shift_v) * period
    return _Cells(
        y=(du * sin + dv * cos).astype(np.float32),
        x=(du * cos - dv * sin).astype(np.float32),
        distance=nearest * np.float32(period),
        to_border=(second - nearest) * np.float32(period),
        key=key,
    )


@lru_cache(maxsize=4)
def _pixels(side: int) -> tuple[Array, Array]:
    ys, xs = np.mgrid[0:side, 0:side].astype(np.float32)
    return ys, xs


def _smooth_noise(side: int, knots: int, rng: np.random.Generator) -> Array:
    """Noise in -1..1 that turns about `knots` times across the canvas."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (knots, knots)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _pointillism(base: Array, rng: np.random.Generator) -> Array:
    """Dots of broken colour on a pale ground."""
    side = base.shape[0]
    unit = side / SIDE
    cells = _divide(side, 8.0 * unit, 0.22, rng.uniform(0, np.pi), rng)
    tints = rng.normal(0, 0.13, (997, 3)).astype(np.float32)
    dots = cells.colour(base) + cells.choose(tints) - 0.07
    ground = base * 0.6 + 0.36
    cover = np.clip((3.6 * unit - cells.distance) / unit + 0.5, 0, 1)[..., None]
    return ground * (1 - cover) + dots * cover


def _cross_hatching(base: Array, rng: np.random.Generator) -> Array:
    """Two layers of ink lines, crossing; the darker the place, the heavier they are."""
    side = base.shape[0]
    unit = side / SIDE
    ys, xs = _pixels(side)
    slope = rng.uniform(0.6, 0.95)
    wobble = 0.8 * unit * _smooth_noise(side, 9, rng)
    darkness = 1.1 - base.mean(axis=2)
    ink = np.zeros_like(darkness)
    for angle in (slope, slope + np.pi / 2):
        across = xs * np.float32(np.cos(angle)) + ys * np.float32(np.sin(angle)) + wobble
        wave = np.cos(2 * np.pi * (across / (8.0 * unit) + rng.uniform()))
        ink = np.maximum(ink, np.clip((wave - 0.45) * 3, 0, 1))
    return base * 1.12 + 0.06 - (ink * (0.18 + 0.22 * darkness))[..., None]


def _impasto(base: Array, rng: np.random.Generator) -> Array:
    """Thick ridges of paint that follow a swirling hand, lit from the upper left."""
    side = base.shape[0]
    unit = side / SIDE
    ys, xs = _pixels(side)
    angle = 2.2 * _smooth_noise(side, 5, rng) + rng.uniform(0, np.pi)
    step_y, step_x = np.sin(angle), np.cos(angle)
    hairs = rng.normal(0, 1, (side, side)).astype(np.float32)
    hairs = hairs + np.roll(hairs, 1, axis=0)
    grain = hairs + np.roll(hairs, 1, axis=1)
    ridges = np.zeros_like(grain)
    reach = round(7 * unit)
    for direction in (1, -1):
        y, x = ys.copy(), xs.copy()
        for _ in range(reach):  # gathers the grain along the stroke, so that ridges run along it
            i, j = y.astype(np.int64) % side, x.astype(np.int64) % side
            ridges += grain[i, j]
            y += direction * step_y[i, j]
            x += direction * step_x[i, j]
    ridges /= ridges.std() + 1e-6
    lit = ridges - np.roll(ridges, (2, 2), (0, 1))
    lit /= lit.std() + 1e-6
    return base + (0.085 * lit + 0.05 * ridges)[..., None] * (0.55 + 0.75 * base)


def _sfumato(base: Array, rng: np.random.Generator) -> Array:
    """Smooth glazes without a stroke to be seen."""
    side = base.shape[0]
    unit = side / SIDE
    veil = base.copy()
    for axis in (0, 1):
        for shift in range(1, round(3 * unit) + 1):
            veil += _slide(base, shift, axis) + _slide(base, -shift, axis)
    veil /= 1 + 4 * round(3 * unit)
    return veil + rng.normal(0, 0.006, (side, side, 1)).astype(np.float32)


def _slide(picture: Array, shift: int, axis: int) -> Array:
    """`picture` moved along an axis; what lies at the edge is repeated."""
    index = np.clip(np.arange(picture.shape[axis]) - shift, 0, picture.shape[axis] - 1)
    return np.take(picture, index, axis=axis)


def _stained_glass(base: Array, rng: np.random.Generator) -> Array:
    """Panes of glass, each brighter towards one edge, held by dark lead."""
    side = base.shape[0]
    unit = side / SIDE
    ys, xs = _pixels(side)
    cells = _divide(side, 17 * unit, 0.45, rng.uniform(0, np.pi), rng)
    turn = cells.choose(rng.uniform(0, 2 * np.pi, 997).astype(np.float32))
    ramp = ((xs - cells.x) * np.cos(turn) + (ys - cells.y) * np.sin(turn)) / (9 * unit)
    panes = 0.6 * cells.colour(base) + 0.4 * base + 0.05 + (0.12 * np.clip(ramp, -1.2, 1.2))[..., None]
    lead = np.clip(2.7 - cells.to_border / unit, 0, 1)[..., None]
    return panes * (1 - lead) + (base * 0.1) * lead


def _mosaic(base: Array, rng: np.random.Generator) -> Array:
    """Square stones set in pale mortar."""
    side = base.shape[0]
    unit = side / SIDE
    cells = _divide(side, 10.5 * unit, 0.05, rng.uniform(-0.35, 0.35), rng)
    stones = cells.colour(base) + cells.choose(rng.normal(0, 0.09, (997, 1)).astype(np.float32)) - 0.06
    mortar = np.clip(2.4 - cells.to_border / unit, 0, 1)[..., None]
    return stones * (1 - mortar) + (0.45 * base + 0.50) * mortar


Brushwork = Callable[[Array, np.random.Generator], Array]

BRUSHWORK: dict[str, Brushwork] = {
    "pointillism": _pointillism,
    "cross hatching": _cross_hatching,
    "impasto": _impasto,
    "sfumato": _sfumato,
    "stained glass": _stained_glass,
    "mosaic": _mosaic,
}

STYLES = tuple(BRUSHWORK)
