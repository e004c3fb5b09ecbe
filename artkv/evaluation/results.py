"""Writes an evaluation's predictions and scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

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
    pd.DataFrame(
        {
            "question_id": list(table.question_ids),
            "image": [str(table.painting_paths[int(painting)]) for painting in table.painting_of_row],
            "question": list(table.questions),
            "answer": list(table.answers),
            "prediction": list(answers),
            "question_type": list(table.question_types),
            "exact_match": [int(exact_match(p, a)) for p, a in zip(answers, table.answers, strict=True)],
            "token_f1": [round(token_f1(p, a), 4) for p, a in zip(answers, table.answers, strict=True)],
        }
    ).to_csv(temporary, index=False)
    temporary.replace(folder / "predictions.csv")
    temporary = folder / ".metrics.json.tmp"
    temporary.write_text(json.dumps({**conditions, **scores.to_json()}, indent=2), encoding="utf-8")
    temporary.replace(folder / "metrics.json")
