"""Writes an evaluation's predictions and scores."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artkv.datasets.table import QuestionTable
from artkv.evaluation.scores import Scores, exact_match, token_f1


def write_results(
    folder: Path, table: QuestionTable, answers: Sequence[str], scores: Scores, conditions: dict[str, Any]
) -> None:
    """Writes `predictions.csv`, a row a question, and `metrics.json` with the scores and `conditions`.

    Each file is replaced whole; called on rank 0 alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".predictions.csv.tmp"
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "question_id",
                "image",
                "question",
                "answer",
                "prediction",
                "question_type",
                "exact_match",
                "token_f1",
            ]
        )
        for row, prediction in enumerate(answers):
            answer = table.answers[row]
            writer.writerow(
                [
                    table.question_ids[row],
                    table.painting_paths[int(table.painting_of_row[row])],
                    table.questions[row],
                    answer,
                    prediction,
                    table.question_types[row],
                    int(exact_match(prediction, answer)),
                    f"{token_f1(prediction, answer):.4f}",
                ]
            )
    temporary.replace(folder / "predictions.csv")
    temporary = folder / ".metrics.json.tmp"
    temporary.write_text(json.dumps({**conditions, **scores.to_json()}, indent=2), encoding="utf-8")
    temporary.replace(folder / "metrics.json")
