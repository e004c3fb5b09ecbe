"""The sweep's page."""

from dataclasses import replace
from pathlib import Path

from artkv.sweep.page import render
from artkv.sweep.plan import Sweep
from artkv.sweep.results import read_results
from tests.sweep.sweeps import make_sweep


def test_the_page_shows_every_setting_and_what_is_missing(finished: Sweep) -> None:
    results, _ = read_results(finished)
    page = render(finished, results, finished.runs[:1])
    assert "2 settings, 6 runs of 6 done." in page
    for name in ("num_prefix_tokens 0", "num_prefix_tokens 4", "What the prefix adds: on - control"):
        assert name in page
    assert "+0.700 [" in page
    assert "style, 4: 0.950, of 3 seeds from 0.900 to 1.000." in page  # what the plot says
    assert "Not done yet: <bdi>num_prefix_tokens=0,seed=1</bdi>" in page


def test_names_are_escaped(finished: Sweep, tmp_path: Path) -> None:
    results, _ = read_results(finished)
    hostile = replace(results[0], name="<script>alert(1)</script>")
    page = render(make_sweep(tmp_path, "{training.seed: [1]}"), [hostile], [])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
