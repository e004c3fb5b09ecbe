"""Attention maps for the page: which paintings have them, and what their bytes and words say."""

import base64
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from artkv.evaluation.attention import PaintingAttention
from artkv.report.attention import as_json, describe, telling_rows
from artkv.report.cases import Case


def case(image: str, differs: bool) -> Case:
    return Case("q", image, "Which style?", "mosaic", "style", ("mosaic",), (True,), differs)


def attention(row: int, peak: tuple[int, int], mass: float) -> PaintingAttention:
    """Of 6 x 6 patches, two layers and three heads; half of the attention on patches is on one of them."""
    shares = np.full((6, 6), 0.5 / 35)
    shares[peak] = 0.5
    heads = np.zeros((2, 3))
    return PaintingAttention(row, shares, shares.T, heads + mass * np.array([[1], [3]]), *[heads] * 6)


def test_paintings_whose_answers_differ_come_first_and_each_once() -> None:
    cases = [case("a", False), case("b", False), case("a", True), case("c", True), case("a", True), case("b", True)]
    assert telling_rows(cases, 12) == [2, 3, 5]
    assert telling_rows(cases, 2) == [2, 3]
    assert telling_rows([case("a", False), case("a", False), case("b", False)], 12) == [0, 2]
    assert telling_rows(cases, 0) == []


def test_a_map_is_a_byte_a_patch_by_row_and_column() -> None:
    tree = as_json([attention(7, (0, 5), 0.1)], has_prefix=True)
    (one,) = tree["cases"]
    assert one["row"] == 7
    on, off = one["maps"]
    assert [on["title"], off["title"]] == ["prefix on", "prefix off"]
    assert on["grid"] == [6, 6]
    shares = np.frombuffer(base64.b64decode(on["bytes"]), dtype=np.uint8).reshape(6, 6)
    assert shares[0, 5] == 255
    assert set(np.delete(shares.ravel(), 5)) == {round(255 / 35)}
    assert on["words"] == "most at the upper right; 20% of all attention is on the prefix tokens"
    assert off["words"] == "most at the lower left"


@pytest.mark.parametrize(
    ("peak", "words"),
    [((2, 3), "centre"), ((0, 2), "upper"), ((3, 0), "left"), ((5, 5), "lower right"), ((1, 1), "upper left")],
)
def test_words_say_where_the_most_is(peak: tuple[int, int], words: str) -> None:
    assert as_json([attention(0, peak, 0.0)], True)["cases"][0]["maps"][0]["words"].startswith(f"most at the {words};")


def test_the_share_on_the_prefix_is_told_by_layer() -> None:
    told = describe([attention(0, (0, 0), 0.1), attention(1, (0, 0), 0.2)], has_prefix=True)
    assert told["count"] == 2
    assert "30.0% of the attention is on the prefix tokens" in told["text"]  # the mean of 0.1, 0.3, 0.2 and 0.6
    texts = [text.text for text in ElementTree.fromstring(str(told["plot"])).findall("text")]
    assert texts == ["layer 1", "15.0%", "layer 2", "45.0%"]


def test_where_no_attention_is_taken_there_is_no_share_but_sizes() -> None:
    film = replace(attention(3, (0, 5), 0.1), mass=None, sizes={"key_scale": np.full((2, 3), 0.25)})
    told = describe([film, film], has_prefix=True)
    assert told["plot"] is None
    assert "takes no attention from the picture, so there is no share of it to show" in told["text"]
    assert "over these paintings, layers and heads: key scale 0.25." in told["text"]
    prompt = replace(film, sizes={})
    assert describe([prompt], has_prefix=True)["text"].endswith("no share of it to show.")
    assert as_json([film], has_prefix=True)["cases"][0]["maps"][0]["words"] == "most at the upper right"


def test_without_a_prefix_there_is_one_map_and_no_share() -> None:
    assert [one["title"] for one in as_json([attention(0, (0, 0), 0.0)], False)["cases"][0]["maps"]] == ["no prefix"]
    told = describe([attention(0, (0, 0), 0.0)], has_prefix=False)
    assert told["plot"] is None
    assert "prefix" not in told["text"]
