"""What comparison.json says, as the page shows it: differences, verdicts, and what guessing scores."""

from collections.abc import Mapping
from typing import Any

from artkv.evaluation.comparison import Comparison, Difference
from artkv.evaluation.encoder_effects import TWO_QUESTIONS, encoder_effects, p_of
from artkv.evaluation.run_roles import ABLATIONS, CONTROL
from artkv.evaluation.scores import ACCURACY, ChoiceScores, Scores
from artkv.evaluation.verdicts import verdicts
from artkv.report.evidence import LABELS, Evidence


def described_comparison(evidence: Evidence) -> dict[str, Any]:
    """What the page's template needs of the comparison; empty lists where there is none."""
    comparison = evidence.comparison
    if comparison is None:
        return {
            "verdicts": [], "differences": [], "guesses": [], "seeds": [], "seed_warning": None, "metric": "",
            "encoders": [], "two_questions": TWO_QUESTIONS,
        }  # fmt: skip
    return {
        "verdicts": [sentence.split(": ", 1) for sentence in verdicts(comparison)] if comparison.has_prefix else [],
        "differences": difference_tables(comparison) if comparison.has_prefix else [],
        "guesses": guesses(comparison, evidence.evaluations[0].scores),
        "seeds": seed_rows(comparison),
        "seed_warning": comparison.seeds and comparison.seeds.warning,
        "metric": comparison.metric.replace("_", " "),
        "encoders": encoder_rows(comparison),
        "two_questions": TWO_QUESTIONS,
    }


def difference_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """A table for each that the run is compared with, the control first: its label, and a row for each question type.

    The last row is of all questions. Then what shuffled prefixes are held against. `with_label`: of what is compared.
    """
    ordered = sorted(comparison.against.items(), key=lambda item: item[0] != CONTROL)
    shuffled = [("shuffled", *item) for item in comparison.shuffled_over.items()]
    return [
        {
            "with_label": _label(with_name),
            "label": _label(name),
            "rows": [_row(kind, one) for kind, one in [*of.by_type.items(), ("all", of.overall)]],
        }
        for with_name, name, of in [*(("on", *item) for item in ordered), *shuffled]
    ]


def encoder_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Of each of several art encoders and each question type its differences in the order of the table's columns.

    A difference that is not there is None.
    """
    return [
        {
            "encoder": effect.encoder,
            "name": effect.question_type,
            "cells": [
                None
                if one is None
                else {**_row(effect.question_type, one), "p": _probability(p_of(one)), "is_shown": one.is_significant}
                for one in (effect.off, effect.shuffled, effect.without)
            ],
        }
        for effect in encoder_effects(comparison)
    ]


def guesses(comparison: Comparison, scores: Scores) -> list[dict[str, str]]:
    """For each question type what is answered most often, and what it scores to say so always, beside the model."""
    scored: Scores | ChoiceScores = (
        scores.choices if comparison.metric == ACCURACY and scores.choices is not None else scores
    )
    rows = []
    for name, summary in comparison.answers.items():
        group = scored.by_type.get(name, scored.overall)
        guess, worst = summary.majority, summary.worst_confusion()
        source = "" if guess.source == "train" else f" (of the {comparison.split} questions)"
        confused = "none" if worst is None else f"{worst[0]} taken for {worst[1]}, {worst[2]:,} times"
        rows.append(
            {
                "name": name, "guess": guess.answer + source, "guess_scores": f"{guess.value:.3f}",
                "model_scores": f"{getattr(group, comparison.metric).value:.3f}", "confused": confused,
            }
        )  # fmt: skip
    return rows


def seed_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Differences over the runs of several seeds, a row for each other and each question type."""
    if comparison.seeds is None:
        return []
    rows = []
    named = {_label(name): spreads for name, spreads in comparison.seeds.against.items()}
    named |= {f"{_label(name)}, of shuffled": spreads for name, spreads in comparison.seeds.shuffled_over.items()}
    for label, spreads in named.items():
        for kind, one in [*spreads.by_type.items(), ("all", spreads.overall)]:
            rows.append(
                {
                    "against": label, "name": kind, "mean": _signed(one.mean),
                    "interval": f"[{_signed(one.low)}, {_signed(one.high)}]", "spread": _number(one.standard_deviation),
                    "each": ", ".join(_signed(value) for value in one.differences),
                }
            )  # fmt: skip
    return rows


def _label(name: str) -> str:
    """How the report calls what a comparison names: an ablation, the control, or another run's folder."""
    return LABELS.get(ABLATIONS.get(name, name), name)


def _row(name: str, one: Difference) -> Mapping[str, str]:
    return {
        "name": name,
        "questions": f"{one.questions:,}",
        "with_prefix": f"{one.with_value:.3f}",
        "without": f"{one.without_value:.3f}",
        "difference": _signed(one.difference.value),
        "interval": f"[{_signed(one.difference.low)}, {_signed(one.difference.high)}]",
        "p_value": _probability(one.p_value),
        "p_holm": "–" if one.p_holm is None else _probability(one.p_holm),
        "wins": f"{one.wins:,}",
        "losses": f"{one.losses:,}",
        "detectable": _number(one.detectable),
    }


def _signed(value: float) -> str:
    """With its sign, a true minus, and zero with neither."""
    rounded = round(value, 3)
    return f"{rounded:+.3f}".replace("-", "−") if rounded else "0.000"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
