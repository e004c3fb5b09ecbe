"""Plots: where points are drawn, what is said of them, and that no text in them is markup."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from artkv.evaluation.calibration import calibrate
from artkv.report.plots import Interval, bar_plot, interval_plot, line_plot, number, reliability_plot, ticks


def parsed(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def test_a_curve_goes_through_its_points_between_the_ticks() -> None:
    points = [(10 * step, 5.0 / step) for step in range(1, 51)]
    svg = parsed(line_plot("Loss", points, 0.0))
    drawn = np.array([pair.split(",") for pair in svg.find("polyline").attrib["points"].split()], dtype=float)
    assert len(drawn) == 50
    steps, values = np.array(points).T
    # The axes are straight: one line through all points, but for a tenth of a unit that rounding takes.
    for axis, given in ((0, steps), (1, values)):
        slope, shift = np.polyfit(given, drawn[:, axis], 1)
        assert np.abs(slope * given + shift - drawn[:, axis]).max() < 0.1
    labels = {text.text: float(text.attrib["y"]) for text in svg.findall("text") if text.attrib["text-anchor"] == "end"}
    slope, shift = np.polyfit(values, drawn[:, 1], 1)
    for label, y in labels.items():
        assert abs(slope * float(label) + shift + 3.5 - y) < 0.2
    assert svg.attrib["aria-label"] == ("Loss. 50 values over steps 10 to 500: first 5, last 0.1, least 0.1, most 5.")


def test_many_points_are_means_of_neighbours_and_one_is_a_dot() -> None:
    svg = parsed(line_plot("Loss", [(step, float(step % 2)) for step in range(1000)]))
    assert len(svg.find("polyline").attrib["points"].split()) == 250
    svg = parsed(line_plot("Score", [(300, 0.9)], 0.0))
    assert svg.find("polyline") is None
    assert len(svg.findall("circle")) == 1


def test_intervals_lie_where_their_values_are() -> None:
    groups = [
        ("style", [Interval(0.5, 0.25, 1.0, "0.5"), None]),
        ("all", [Interval(0.0, 0.0, 0.0, "0"), Interval(1.0, 0.75, 1.0, "1")]),
    ]
    svg = parsed(interval_plot("Exact match", ["on", "off"], groups))
    grid = sorted({float(line.attrib["x1"]) for line in svg.findall("line") if line.attrib["class"] == "grid"})
    at = dict(zip((0, 0.25, 0.5, 0.75, 1), grid, strict=True))
    whiskers = [one.attrib for one in svg.findall("line") if one.attrib["class"].startswith("whisker")]
    assert [(float(one["x1"]), float(one["x2"])) for one in whiskers] == [
        (at[0.25], at[1]), (at[0], at[0]), (at[0.75], at[1]),
    ]  # fmt: skip
    marks = [one.attrib["transform"].removeprefix("translate(").split()[0] for one in svg.findall("path")]
    assert [float(mark) for mark in marks] == [at[0.5], at[0], at[1]]
    shapes = [one.attrib["d"] for one in svg.findall("path")]
    assert shapes[0] == shapes[1] != shapes[2]  # by column, for those who see no colours
    assert svg.attrib["aria-label"] == "Exact match. style, on: 0.5. all, on: 0. all, off: 1."
    heights = [float(one.attrib["y"]) for one in svg.iter("text")]
    assert max(heights) < float(svg.attrib["viewBox"].split()[3])


def test_bars_are_as_long_as_their_values() -> None:
    svg = parsed(bar_plot("Share", [("layer 1", 0.2), ("layer 2", 0.4)], 0.4))
    widths = [float(bar.attrib["width"]) for bar in svg.findall("rect")]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert [text.text for text in svg.findall("text")] == ["layer 1", "20.0%", "layer 2", "40.0%"]


@pytest.mark.parametrize("text", ["</svg><script>", '"><b a="', "&amp;", "'", "\u202e"])
def test_no_text_is_markup(text: str) -> None:
    svg = parsed(interval_plot(text, [text], [(text, [Interval(0.5, 0, 1, text)])]))
    assert {one.tag for one in svg.iter()} == {"svg", "text", "line", "path"}
    assert svg.attrib["aria-label"] == f"{text}. {text}, {text}: {text}."
    assert text in [one.text for one in svg.findall("text")]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.37, 8.48), (0, 1e-4), (3, 3), (0, 0), (-0.2, 0.7), (119, 120), (0, 864), (1e-9, 2e-9)]
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    steps = np.diff(found)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))
    mantissa = steps[0] / 10.0 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (864, "864"), (1.2e-5, "1.2e-05"), (1000, "1,000"), (0.12345, "0.1235"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_reliability_plot_has_a_bar_and_a_dot_for_each_bin_with_questions() -> None:
    rng = np.random.default_rng(0)
    confidence_Q = rng.uniform(0.3, 1, 400)
    bins = calibrate(confidence_Q, rng.random(400) < confidence_Q).bins
    svg = parsed(reliability_plot("Reliability", bins))
    asked = [one for one in bins if one.count]
    bars = svg.findall("rect")
    assert len(bars) == 2 * len(asked) < 2 * len(bins)
    (diagonal,) = (line for line in svg.findall("line") if line.attrib["class"] == "diagonal")
    x0, y0, x1, y1 = (float(diagonal.attrib[name]) for name in ("x1", "y1", "x2", "y2"))
    marks = [re.findall(r"[-\d.]+", path.attrib["transform"]) for path in svg.findall("path")]
    for one, accuracy, number_of, mark in zip(asked, bars[::2], bars[1::2], marks, strict=True):
        height = float(accuracy.attrib["height"]) / (y0 - y1)
        assert height == pytest.approx(one.accuracy, abs=1e-3)  # tenths of 190 units
        left = (float(accuracy.attrib["x"]) - x0) / (x1 - x0)
        right = left + float(accuracy.attrib["width"]) / (x1 - x0)
        assert one.low < left < right < one.high
        assert (float(mark[0]) - x0) / (x1 - x0) == pytest.approx(one.confidence, abs=1e-3)
        assert (y0 - float(mark[1])) / (y0 - y1) == pytest.approx(one.accuracy, abs=1e-3)
        share = one.count / max(one.count for one in asked)
        assert float(number_of.attrib["height"]) == pytest.approx(28 * share, abs=0.06)
    assert f"Of {asked[-1].count} choices with probabilities of 0.93 to 1.00" in svg.attrib["aria-label"]


def test_long_columns_keep_their_ends() -> None:
    columns = ["prefix on", "brushwork_of_convnext_tiny off", "brushwork_of_convnext_tiny shuffled"]
    svg = interval_plot("Exact match", columns, [("all", [Interval(0.5, 0, 1, "half")] * 3)])
    assert ">brushwork…t_tiny off<" in svg
    assert ">brushwork…y shuffled<" in svg
