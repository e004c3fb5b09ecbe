"""Paintings made from a seed: what they show is coarse, the style is in the brushwork only.

A composition (subject, colour, time of day) is laid in as a smooth underpainting. A style then puts its
brushwork over it and may not change what a coarse look sees: the painting, scaled down to
`COARSE_SIDE` pixels, equals the scaled-down underpainting. So a vision encoder that is given no
more than that cannot know the style, however it is trained, while at full size the styles are plain to see.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]

COLOURS = ("red", "yellow", "green", "blue", "violet", "grey")
SUBJECTS = ("boat", "house", "tree", "mountain", "bridge", "tower")
TIMES = ("day", "dusk", "night")

SIDE = 128
# Scaled down to so many pixels (bicubic, antialiased, as PIL and torchvision do it) all styles look the same.
COARSE_SIDE = 16


@dataclass(frozen=True)
class Composition:
    """What a painting shows; `seed` settles everything that has no name, such as where things stand."""

    colour: str
    subject: str
    time: str
    seed: int


def paint(composition: Composition, style: str, side: int = SIDE) -> Image.Image:
    """Paints `composition` in `style`, a square RGB picture of `side` pixels."""
    base = underpainting(composition, side)
    rng = np.random.default_rng([composition.seed, STYLES.index(style)])
    painted = _keep_coarse_look(_BRUSHWORK[style](base, rng), base)
    return Image.fromarray(np.round(painted * 255).astype(np.uint8))


# --------------------------------------------------------------------------------------------------
# Underpainting
# --------------------------------------------------------------------------------------------------

# Hue and saturation of what dominates, and hue of the contrasting subject.
_PALETTES = {
    "red": (0.995, 0.85, 0.12),
    "yellow": (0.135, 0.90, 0.62),
    "green": (0.37, 0.70, 0.06),
    "blue": (0.58, 0.80, 0.10),
    "violet": (0.77, 0.60, 0.14),
    "grey": (0.60, 0.03, 0.03),
}
# Brightness of the sky at the top and at the horizon, of the far and near ground, of the subject.
_LIGHT = {
    "day": (0.82, 0.95, 0.72, 0.56, 0.36),
    "dusk": (0.42, 0.92, 0.50, 0.36, 0.22),
    "night": (0.26, 0.40, 0.30, 0.24, 0.66),
}


def underpainting(composition: Composition, side: int = SIDE) -> Array:
    """The composition without any brushwork, (side, side, 3) in 0..1, with room for it at both ends."""
    rng = np.random.default_rng(composition.seed)
    hue, saturation, accent = _PALETTES[composition.colour]
    sky_top, sky_low, ground_far, ground_near, subject_light = _LIGHT[composition.time]
    hue += rng.uniform(-0.012, 0.012)
    saturation *= rng.uniform(0.9, 1.1)
    exposure = rng.uniform(0.95, 1.05)

    def tone(light: float, hue_shift: float = 0.0, strength: float = 1.0) -> Array:
        rgb = colorsys.hsv_to_rgb((hue + hue_shift) % 1.0, min(1.0, saturation * strength), light * exposure)
        return np.asarray(rgb, np.float32)

    horizon = rng.uniform(0.60, 0.70)
    canvas = 2 * side  # drawn at twice the size, for smooth edges
    height: Array = (np.arange(canvas, dtype=np.float32)[:, None] + 0.5) / np.float32(canvas)
    sky = _blend(
        tone(sky_top, 0.015), tone(sky_low, -0.01, 0.75), np.power(height / np.float32(horizon), np.float32(1.5))
    )
    ground = _blend(
        tone(ground_far, -0.02), tone(ground_near, 0.02), (height - np.float32(horizon)) / np.float32(1 - horizon)
    )
    rows = np.where(height < horizon, sky, ground)
    # A slow drift of light from side to side, different in each composition.
    drift = 1 + rng.uniform(-0.07, 0.07) * np.linspace(-1, 1, canvas, dtype=np.float32)
    background = rows[:, None, :] * drift[None, :, None]
    image = Image.fromarray(np.round(np.clip(background, 0, 1) * 255).astype(np.uint8))

    draw = ImageDraw.Draw(image)
    pen = _Pen(draw, canvas)
    middle = rng.uniform(0.40, 0.60)
    size = rng.uniform(0.92, 1.08)
    _draw_light(pen, composition.time, middle, horizon, tone, rng)
    _draw_hills(pen, horizon, tone((sky_low + ground_far) / 2, 0.01), rng)

    def accent_tone(light: float, strength: float) -> Array:
        colourful = 0.10 if composition.colour == "grey" else 0.55
        return np.asarray(colorsys.hsv_to_rgb(accent, colourful * strength, light * exposure), np.float32)

    dark, light = accent_tone(subject_light, 1.0), accent_tone(min(0.92, subject_light + 0.20), 0.75)
    _DRAW_SUBJECT[composition.subject](pen, middle, horizon, size, dark, light)
    small = image.resize((side, side), Image.Resampling.BOX)
    return (0.15 + 0.74 * np.asarray(small, np.float32) / 255).astype(np.float32)


class _Pen:
    """Draws shapes given in parts of the canvas, from (0, 0) top left to (1, 1)."""

    def __init__(self, draw: ImageDraw.ImageDraw, canvas: int) -> None:
        self._draw, self._canvas = draw, canvas

    def polygon(self, points: list[tuple[float, float]], colour: Array) -> None:
        self._draw.polygon([(x * self._canvas, y * self._canvas) for x, y in points], fill=_rgb(colour))

    def ellipse(self, x: float, y: float, width: float, height: float, colour: Array) -> None:
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        self._draw.ellipse([edge * self._canvas for edge in box], fill=_rgb(colour))


def _rgb(colour: Array) -> tuple[int, int, int]:
    red, green, blue = (round(float(channel) * 255) for channel in np.clip(colour, 0, 1))
    return red, green, blue


def _blend(first: Array, second: Array, amount: Array) -> Array:
    amount = np.clip(amount, 0, 1)
    return first * (1 - amount) + second * amount


def _draw_light(
    pen: _Pen, time: str, middle: float, horizon: float, tone: Callable[..., Array], rng: np.random.Generator
) -> None:
    """A high sun by day, a wide one on the horizon at dusk, a moon at night; beside the subject."""
    away = (1 if rng.random() < 0.5 else -1) * rng.uniform(0.28, 0.34)
    x = min(max(middle + away, 0.13), 0.87)
    if time == "day":
        pen.ellipse(x, rng.uniform(0.13, 0.2), 0.15, 0.15, tone(1.0, 0.0, 0.25))
    elif time == "dusk":
        pen.ellipse(x, horizon - 0.02, 0.24, 0.24, tone(1.0, 0.0, 0.4))
    else:
        y = rng.uniform(0.13, 0.2)
        pen.ellipse(x, y, 0.13, 0.13, tone(0.85, 0.0, 0.2))
        pen.ellipse(x + 0.035, y - 0.02, 0.11, 0.11, tone(0.30, 0.015))


def _draw_hills(pen: _Pen, horizon: float, colour: Array, rng: np.random.Generator) -> None:
    xs = np.linspace(0, 1, 33)
    phase, waves = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 1.8)
    ys = horizon - 0.035 - 0.03 * np.sin(2 * np.pi * waves * xs + phase)
    ridge = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    pen.polygon([(0.0, horizon + 0.005), *ridge, (1.0, horizon + 0.005)], colour)


def _boat(pen: _Pen, x: float, y: float, size: float, dark: Array, light: Array) -> None:
    y, u = y + 0.12, 0.42 * size
    hull = [(x - 0.62 * u, y), (x + 0.62 * u, y), (x + 0.4 * u, y + 0.3 * u), (x - 0.42 * u, y + 0.3 * u)]
    pen.polygon(hull, dark)
    pen.polygon([(x - 0.02 * u, y - 1.05 * u), (x - 0.02 * u, y - 0.06 * u), (x + 0.6 * u, y - 0.06 * u)], light)
    pen.polygon([(x - 0.08 * u, y - 0.9 * u), (x - 0.08 * u, y - 0.06 * u), (x - 0.5 * u, y - 0.06 * u)], dark)


def _house(pen: _Pen, x: float, y: float, size: float, dark: Array, light: Array) -> None:
    y, u = y + 0.1, 0.4 * size
    pen.polygon([(x - 0.5 * u, y), (x + 0.5 * u, y), (x + 0.5 * u, y - 0.6 * u), (x - 0.5 * u, y - 0.6 * u)], light)
    pen.polygon([(x - 0.62 * u, y - 0.58 * u), (x + 0.62 * u, y - 0.58 * u), (x, y - 1.1 * u)], dark)
    door = [(x - 0.12 * u, y), (x + 0.12 * u, y), (x + 0.12 * u, y - 0.36 * u), (x - 0.12 * u, y - 0.36 * u)]
    pen.polygon(door, dark)


def _tree(pen: _Pen, x: float, y: float, size: float, dark: Array, light: Array) -> None:
    y, u = y + 0.12, 0.5 * size
    trunk = [(x - 0.09 * u, y), (x + 0.09 * u, y), (x + 0.06 * u, y - 0.6 * u), (x - 0.06 * u, y - 0.6 * u)]
    pen.polygon(trunk, dark)
    pen.ellipse(x, y - 0.85 * u, 0.95 * u, 0.85 * u, dark)
    pen.ellipse(x - 0.1 * u, y - 0.95 * u, 0.55 * u, 0.45 * u, (dark + light) / np.float32(2))


def _mountain(pen: _Pen, x: float, y: float, size: float, dark: Array, light: Array) -> None:
    y, u = y + 0.02, 0.48 * size
    pen.polygon([(x - 0.95 * u, y), (x + 0.95 * u, y), (x + 0.55 * u, y - 0.6 * u), (x + 0.05 * u, y)], dark)
    pen.polygon([(x - 0.95 * u, y), (x + 0.6 * u, y), (x - 0.1 * u, y - 1.05 * u)], dark)
    pen.polygon([(x - 0.38 * u, y - 0.7 * u), (x + 0.14 * u, y - 0.7 * u), (x - 0.1 * u, y - 1.05 * u)], light)


def _bridge(pen: _Pen, x: float, y: float, size: float, dark: Array, light: Array) -> None:
    y, u = y + 0.14, 0.5 * size
    angles = np.linspace(np.pi, 0, 25)
    arch = [(x + 0.5 * u * float(np.cos(a)), y - 0.34 * u * float(np.sin(a))) for a in angles]
    deck = [(1.0, y), (1.0, y - 0.42 * u), (x, y - 0.56 * u), (0.0, y - 0.42 * u), (0.0, y)]
    pen.polygon([*arch, *deck], dark)
    rail = [(0.0, y - 0.42 * u), (x, y - 0.56 * u), (1.0, y - 0.42 * u)]
    pen.polygon([*rail, (1.0, y - 0.49 * u), (x, y - 0.63 * u), (0.0, y - 0.49 * u)], light)


def _tower(pen: _Pen, x: float, y: float, size: float, dark: Array, light: Array) -> None:
    y, u = y + 0.1, 0.6 * size
    pen.polygon(
        [(x - 0.16 * u, y), (x + 0.16 * u, y), (x + 0.11 * u, y - 0.85 * u), (x - 0.11 * u, y - 0.85 * u)], light
    )
    band = [(x - 0.14 * u, y - 0.3 * u), (x + 0.14 * u, y - 0.3 * u), (x + 0.13 * u, y - 0.52 * u)]
    pen.polygon([*band, (x - 0.13 * u, y - 0.52 * u)], dark)
    pen.polygon([(x - 0.19 * u, y - 0.83 * u), (x + 0.19 * u, y - 0.83 * u), (x, y - 1.12 * u)], dark)


_DRAW_SUBJECT: dict[str, Callable[[_Pen, float, float, float, Array, Array], None]] = {
    "boat": _boat,
    "house": _house,
    "tree": _tree,
    "mountain": _mountain,
    "bridge": _bridge,
    "tower": _tower,
}

# --------------------------------------------------------------------------------------------------
# Brushwork: each takes the underpainting and returns it with its own fine texture
# --------------------------------------------------------------------------------------------------


def _keep_coarse_look(painted: Array, base: Array) -> Array:
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


_BRUSHWORK: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "pointillism": _pointillism,
    "cross hatching": _cross_hatching,
    "impasto": _impasto,
    "sfumato": _sfumato,
    "stained glass": _stained_glass,
    "mosaic": _mosaic,
}

STYLES = tuple(_BRUSHWORK)
