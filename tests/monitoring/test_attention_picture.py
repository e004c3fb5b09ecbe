"""Overlays: the brightest place is where the map says, and both maps share a scale."""

import numpy as np
import pytest
from PIL import Image

from artkv.monitoring.attention_picture import Looks, overlays


def brightness(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L")).astype(int)


@pytest.mark.parametrize("corner", [(0, 0), (0, 3), (3, 0), (3, 3), (1, 2)])
def test_the_brightest_place_is_where_the_map_is_largest(corner: tuple[int, int]) -> None:
    patches = np.full((4, 4), 0.02)
    patches[corner] = 0.7
    picture = Image.new("RGB", (200, 80), (90, 90, 90))
    _, off = overlays(picture, Looks(np.full((4, 4), 1 / 16), patches, mass=0.0))
    assert off.size == picture.size
    bright = brightness(off)
    down, right = np.unravel_index(bright.argmax(), bright.shape)
    assert (down // 20, right // 50) == corner
    assert (bright == bright.max()).sum() == 20 * 50  # this patch, and all of it


def test_both_maps_have_one_scale_and_the_picture_shows_through() -> None:
    left = np.array([[0.6, 0.1], [0.2, 0.1]])
    even = np.full((2, 2), 0.25)
    plain = Image.new("RGB", (20, 20), (0, 0, 0))
    on, off = overlays(plain, Looks(left, even, mass=0.3))
    assert brightness(on).max() > brightness(off).max() + 40
    assert np.unique(brightness(off)).size == 1
    half = plain.copy()
    half.paste((255, 255, 255), (0, 0, 20, 10))
    _, shaded = overlays(half, Looks(left, even, mass=0.3))
    assert brightness(shaded)[5, 5] > brightness(shaded)[15, 5] + 40


def test_captions_say_the_mass_and_a_model_without_a_prefix_has_one_map() -> None:
    even = np.full((2, 2), 0.25)
    assert Looks(even, even, mass=0.274).captions() == ["prefix on (27.4% of attention on it)", "prefix off"]
    without = Looks(None, even, mass=0.0)
    assert without.captions() == ["no prefix"]
    assert len(overlays(Image.new("RGB", (20, 20)), without)) == 1
