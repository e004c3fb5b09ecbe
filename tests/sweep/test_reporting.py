"""The files of a sweep."""

import csv
import json

import pytest

from artkv.sweep.plan import Sweep
from artkv.sweep.reporting import report_on


def test_files_hold_every_run(finished: Sweep) -> None:
    text, (page, as_csv, as_json) = report_on(finished)
    assert text.startswith("exact_match")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    tree = json.loads(as_json.read_text(encoding="utf-8"))
    assert [one["seeds"] for one in tree["settings"]] == [[1, 2, 3]] * 2
    assert tree["settings"][1]["comparison"]["seeds"]["training_seeds"] == [1, 2, 3]
    with as_csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (3 + 4) * 3  # seeds, ablations of control and prefix, types with all
    found = [
        float(row["exact_match"])
        for row in rows
        if (row["kv_modulation.num_prefix_tokens"], row["prefix"], row["question_type"]) == ("4", "on", "style")
    ]
    assert found == pytest.approx([0.9, 1.0, 0.95])
