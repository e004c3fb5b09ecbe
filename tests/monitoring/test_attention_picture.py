"""Overlays and masses of heads: the brightest place is where the numbers say, and pictures share a scale."""

import numpy as np
import pytest
from PIL import Image

from artkv.monitoring.attention_picture import Looks, draw_masses, overlays


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


def cell(pixels: np.ndarray, layer: int, head: int) -> np.ndarray:
    """The upper left corner of a head's cell, where no number stands."""
    return pixels[30 + 36 * layer + 2, 84 + 52 * head + 2].astype(int)


def test_each_heads_cell_has_the_colour_of_its_mass_by_layer_and_head() -> None:
    mass = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, -0.2]])
    pixels = draw_masses(mass)
    assert pixels.shape == (30 + 2 * 36, 84 + 3 * 52, 3)
    # Inferno at quarters, as matplotlib has it.
    expected = [[(0, 0, 4), (87, 16, 110), (188, 55, 84)], [(249, 142, 9), (252, 255, 164), (0, 0, 4)]]
    assert [[tuple(cell(pixels, layer, head)) for head in range(3)] for layer in range(2)] == expected


def test_a_mass_has_the_same_colour_whatever_the_others_are() -> None:
    low, high = draw_masses(np.array([[0.3, 0.01]])), draw_masses(np.array([[0.3, 0.99]]))
    assert (cell(low, 0, 0) == cell(high, 0, 0)).all()
    assert (cell(low, 0, 1) != cell(high, 0, 1)).any()


def test_numbers_stand_out_from_their_cells() -> None:
    for share in np.linspace(0, 1, 11):
        pixels = draw_masses(np.array([[share]]))
        inside = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)[30:64, 84:134]
        assert np.ptp(inside) > 100
