"""Evaluations written by hand into runs' folders."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from artkv.config import Config, dump_config, load_config
from artkv.datasets.columns import PathColumn, StringColumn
from artkv.datasets.table import QuestionTable
from artkv.evaluation.results import Answers, evaluation_folder, write_results
from artkv.evaluation.scores import Choice, score_choices, score_predictions

PAINTINGS = 20


def make_table(root: Path, paintings: int = PAINTINGS) -> QuestionTable:
    """Of each painting the style and the colour are asked, three of a kind."""
    count = 2 * paintings
    answers = [text for i in range(paintings) for text in (f"style {i % 3}", f"colour {i % 3}")]
    return QuestionTable(
        path=root / "test.csv",
        questions=StringColumn(["Which style?", "Which colour?"] * paintings),
        answers=StringColumn(answers),
        question_ids=StringColumn(str(row) for row in range(count)),
        question_types=StringColumn(["style", "colour"] * paintings),
        line_numbers=np.arange(count) + 2,
        painting_of_row=np.repeat(np.arange(paintings), 2),
        painting_paths=PathColumn(root / "images" / f"p{i}.png" for i in range(paintings)),
    )


def answers_to(table: QuestionTable, styles_right: int) -> list[str]:
    """All colours right, and the styles of the first paintings."""
    return [
        answer if kind == "colour" or row // 2 < styles_right else "style X"
        for row, (answer, kind) in enumerate(zip(table.answers, table.question_types, strict=True))
    ]


STYLES = {"style": ["style 0", "style 1", "style X"]}


def write_evaluation(
    run_dir: Path,
    ablation: str,
    table: QuestionTable,
    answers: Sequence[str],
    checkpoint: str = "step_00000081",
    choices: Sequence[Choice | None] | None = None,
    **conditions: object,
) -> None:
    """conditions: how they were computed. choices: among `STYLES`, of which style 2 is none; colours do not choose."""
    scores = score_predictions(
        answers, list(table.answers), list(table.question_types), 20, 0, table.painting_of_row.tolist()
    )
    if choices is not None:
        scores = replace(scores, choices=score_choices(choices, answers, table, STYLES, 20, 0))
    given = Answers(table, answers, table.painting_paths[0].parent, choices=choices)
    write_results(
        evaluation_folder(run_dir, "test", ablation), given, scores, {"checkpoint": f"x/{checkpoint}", **conditions}
    )


def choices_of(table: QuestionTable, styles_right: int) -> list[Choice | None]:
    """Styles of the first paintings right, all others style X, with a probability of 0.7."""
    return [
        Choice(answer if row // 2 < styles_right and answer in STYLES["style"] else "style X", 0.7, 0.25)
        if kind == "style"
        else None
        for row, (answer, kind) in enumerate(zip(table.answers, table.question_types, strict=True))
    ]


def write_run(run_dir: Path, styles_right: Mapping[str, int], **sections: dict) -> Path:
    """A run's folder with a config and, for each ablation, an evaluation in which so many styles are right."""
    tree = Config().model_dump()
    for section, values in sections.items():
        tree[section] |= values
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(Config.model_validate(tree)), encoding="utf-8")
    table = make_table(run_dir.parent)
    for ablation, right in styles_right.items():
        write_evaluation(run_dir, ablation, table, answers_to(table, right))
    return run_dir


def write_encoders_run(
    run_dir: Path, styles_right: Mapping[str, int], encoders: Sequence[str], **sections: dict
) -> Path:
    """As `write_run`, with several art encoders, each from a file of its name."""
    write_run(run_dir, styles_right, **sections)
    entries = ", ".join(f"{{name: {name}, checkpoint: {name}.pth}}" for name in encoders)
    config = load_config(run_dir / "config.yaml", ["efficientnet=null", f"art_encoders=[{entries}]"])
    # Paths are of the folder that all runs share.
    paths = [run_dir.parent / f"{name}.pth" for name in encoders]
    (run_dir / "config.yaml").write_text(dump_config(config.with_encoder_checkpoints(paths)), encoding="utf-8")
    return run_dir
