"""What a painting shows, laid in smoothly and without any brushwork."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]

COLOURS = ("red", "yellow", "green", "blue", "violet", "grey")
SUBJECTS = ("boat", "house", "tree", "mountain", "bridge", "tower")
TIMES = ("day", "dusk", "night")

SIDE = 128


@dataclass(frozen=True)
class Composition:
    """What a painting shows; `seed` settles everything that has no name, such as where things stand."""

    colour: str
    subject: str
    time: str
    seed: int


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
    # Rows of all channels, and in place: loops over three channels, and a new canvas for each operation, are slow.
    background = np.tile(rows, (1, canvas)) * np.repeat(drift, 3)
    np.clip(background, 0, 1, out=background)
    background *= 255
    np.rint(background, out=background)
    image = Image.fromarray(background.astype(np.uint8).reshape(canvas, canvas, 3))

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
