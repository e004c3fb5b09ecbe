"""What was chosen among few answers, as the page shows it: accuracy, and what probabilities are worth."""

from typing import Any

from artkv.report.evidence import Evidence
from artkv.report.plots import reliability_plot


def described_choices(evidence: Evidence) -> dict[str, Any] | None:
    """What the page's template needs of choices; None where nothing was chosen.

    The plot and its table are of the first evaluation that has choices.
    """
    columns = [(one.label, one.scores.choices) for one in evidence.evaluations if one.scores.choices is not None]
    if not columns:
        return None
    label, first = columns[0]
    groups = [
        (name, f"{group.count:,}", f"{len(first.candidates[name]):,}", [of.by_type.get(name) for _, of in columns])
        for name, group in first.by_type.items()
    ]
    groups.append(("all", f"{first.overall.count:,}", "", [of.overall for _, of in columns]))
    calibration = first.overall.calibration
    return {
        "labels": [name for name, _ in columns],
        "rows": [
            {"name": name, "count": count, "candidates": candidates, "cells": [one and one.accuracy for one in cells]}
            for name, count, candidates, cells in groups
        ],
        "scores": [
            ("exact match of the generated answers", [of.overall.exact_match for _, of in columns]),
            ("accuracy of the choices", [of.overall.accuracy for _, of in columns]),
        ],
        "numbers": [
            ("mean probability of the choices", [f"{of.overall.calibration.mean_confidence:.3f}" for _, of in columns]),
            ("expected calibration error", [f"{of.overall.calibration.ece:.3f}" for _, of in columns]),
        ],
        "not_candidates": f"{first.not_candidates:,}" if first.not_candidates else "",
        "plot": reliability_plot(f"Reliability, {label}", calibration.bins),
        "plot_label": label,
        "ece": f"{calibration.ece:.3f}",
        "bins": [
            (f"{one.low:.3f} to {one.high:.3f}", f"{one.count:,}", f"{one.confidence:.3f}", f"{one.accuracy:.3f}")
            for one in calibration.bins
            if one.count
        ],
    }
