"""Which answers are taken for which, of question types that have few: a table of counts for each, shaded by share."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from artkv.evaluation.answer_summary import ALL
from artkv.evaluation.choices import MOST_CANDIDATES
from artkv.evaluation.scores import rows_by_type
from artkv.report.evidence import Evaluation

# Rows and columns of a table, that of all other answers included.
MOST_SHOWN = 20
# Question types that have tables.
MOST_TYPES = 6
# Of whom there are tables: the prefix on, and the first of these.
_BESIDE = ("off", "control")
# Shades of a cell, from a share above 0 to all of a row.
SHADES = 5


@dataclass(frozen=True)
class Matrix:
    """counts[a][p]: questions with the right answer `answers[a]` to which `answers[p]` was given.

    answers: right answers, lower-cased, by how often they are. others: the right answers that one row for all of them
    stands for, the last one; 0: there is no such row. The last column is of all other answers that were given.
    """

    answers: tuple[str, ...]
    others: int
    counts: tuple[tuple[int, ...], ...]


def matrix_of(predictions: Sequence[str], answers: Sequence[str]) -> Matrix:
    """Counts of (right, given) pairs, lower-cased as exact match has them, of `MOST_SHOWN` rows and columns at most."""
    expected = Counter(answer.lower() for answer in answers)
    by_frequency = sorted(expected, key=lambda answer: (-expected[answer], answer))
    shown = by_frequency[: MOST_SHOWN - 1]
    others = len(by_frequency) - len(shown)
    place_of = {answer: place for place, answer in enumerate(shown)}
    counts = [[0] * (len(shown) + 1) for _ in range(len(shown) + (others > 0))]
    for prediction, answer in zip(predictions, answers, strict=True):
        row = place_of.get(answer.lower(), len(shown))
        counts[row][place_of.get(prediction.lower(), len(shown))] += 1
    return Matrix(tuple(shown), others, tuple(map(tuple, counts)))


def described_confusions(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """What the page's template needs: an entry for each question type that has few answers, and more than one.

    First those in which the prefix made most answers right. An entry has a table of the first evaluation, and of the
    one without the prefix, or the control, where there is one.
    """
    first = evaluations[0].predictions
    chosen = [evaluations[0], *[one for name in _BESIDE for one in evaluations if one.name == name][:1]]
    types = {name: rows.tolist() for name, rows in rows_by_type(first.columns["question_type"]).items()}
    entries = []
    for name, rows in (types or {ALL: list(range(len(first)))}).items():
        answers = [first.columns["answer"][row] for row in rows]
        if not 1 < len({answer.lower() for answer in answers}) <= MOST_CANDIDATES:
            continue
        matrices = [matrix_of([one.predictions.columns["prediction"][row] for row in rows], answers) for one in chosen]
        right = [sum(matrix.counts[place][place] for place in range(len(matrix.answers))) for matrix in matrices]
        tables = [_table(one.label, matrix) for one, matrix in zip(chosen, matrices, strict=True)]
        entries.append((right[-1] - right[0], {"name": name, "others": matrices[0].others, "tables": tables}))
    entries.sort(key=lambda entry: entry[0])  # stable: the usual order where the prefix adds as much
    return [entry for _, entry in entries[:MOST_TYPES]]


def _table(label: str, matrix: Matrix) -> dict[str, Any]:
    """The cells of a table, each a text, a shade from 0 to `SHADES`, and whether it is of right answers."""
    last = len(matrix.answers)
    has_other = any(row[last] for row in matrix.counts)
    columns = [*matrix.answers, *([None] if has_other else [])]
    rows = []
    for place, counts in enumerate(matrix.counts):
        total = sum(counts)
        cells = [
            {"text": f"{count:,}", "shade": math.ceil(SHADES * count / total), "is_right": place == column < last}
            for column, count in enumerate(counts[: len(columns)])
        ]
        rows.append({"name": matrix.answers[place] if place < last else None, "cells": cells, "total": f"{total:,}"})
    return {"label": label, "columns": columns, "rows": rows}
