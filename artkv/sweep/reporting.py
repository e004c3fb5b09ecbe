"""Writes what a sweep has found: `sweep.json`, `sweep.csv` and `sweep.html`."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artkv.files import write_whole
from artkv.sweep.naming import told_settings
from artkv.sweep.page import render
from artkv.sweep.plan import SEED, Sweep
from artkv.sweep.results import ALL, METRIC, SettingResult, format_results, read_results

_RESULTS, _TABLE, _PAGE = "sweep.json", "sweep.csv", "sweep.html"


def report_on(sweep: Sweep) -> tuple[str, list[Path]]:
    """Compares what is done, and writes it; returns it as text for a terminal, and the files' paths."""
    results, missing = read_results(sweep)
    contents = {
        _PAGE: render(sweep, results, missing),
        _TABLE: _as_csv(results),
        _RESULTS: json.dumps(_as_json(sweep, results), indent=2),
    }
    for name, content in contents.items():
        _write(sweep.output_dir / name, content)
    return format_results(results, missing), [sweep.output_dir / name for name in contents]


def _as_json(sweep: Sweep, results: Sequence[SettingResult]) -> dict[str, Any]:
    settings = [
        {
            "name": result.name,
            "settings": dict(result.settings),
            "seeds": result.seeds,
            "scores": [{name: scores.to_json() for name, scores in one.items()} for one in result.scores],
            "comparison": None if result.comparison is None else result.comparison.to_json(),
        }
        for result in results
    ]
    return {"split": sweep.split, "metric": METRIC, "settings": settings}


def _as_csv(results: Sequence[SettingResult]) -> str:
    """A row a run, ablation and question type."""
    keys = list(dict.fromkeys(key for result in results for key in result.settings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, SEED, "prefix", "question_type", METRIC, "low", "high", "questions", "paintings"])
    for result in results:
        told = told_settings(result.settings)
        own = [told.get(key, "") for key in keys]
        for seed, of_run in zip(result.seeds, result.scores, strict=True):
            for ablation, scores in of_run.items():
                for name, group in [*scores.by_type.items(), (ALL, scores.overall)]:
                    one = group.exact_match
                    counts = (group.count, group.clusters)
                    writer.writerow([*own, seed, ablation, name, one.value, one.low, one.high, *counts])
    return text.getvalue()


def _write(path: Path, content: str) -> None:
    write_whole(path, lambda file: file.write_text(content, encoding="utf-8"))
