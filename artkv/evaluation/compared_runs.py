"""Compares the evaluations in runs' folders, and writes `comparison.json`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artkv.config import Config
from artkv.datasets.records import read_records
from artkv.errors import UserError
from artkv.evaluation.answer_summary import most_frequent_answers, summarize_answers
from artkv.evaluation.comparison import (
    FEW_SEEDS,
    Comparison,
    Resampling,
    Seeds,
    SeedSpread,
    compare_values,
    spread_over_seeds,
)
from artkv.evaluation.results import COMPARISON, Predictions, check_same_questions, evaluation_folder, read_predictions
from artkv.evaluation.run_roles import ABLATIONS, CONTROL, Roles, Run, roles_of
from artkv.evaluation.scores import rows_by_type
from artkv.files import write_whole

# Of these the first that a run has answered is compared, where none is asked for.
_SPLITS = ("test", "val", "train")


def compare_runs(runs: Sequence[Run], split: str | None, metric: str) -> tuple[Comparison, Path]:
    """Compares the first run's prefix on with its ablations and with the prefix on of the others.

    split: None for the first of test, val and train that the first run has answered. Writes `comparison.json` beside
    the first run's predictions with the prefix on, and returns what it holds and its path. `UserError` for evaluations
    that are missing, of different checkpoints or not on the same questions.
    """
    first = runs[0]
    roles = roles_of(runs)
    split = split or _answered_split(first.folder)
    on = _read_on(first.folder, split)
    compared = {name: read for name in ABLATIONS if (read := _read_ablation(first.folder, split, name, on)) is not None}
    if roles.controls:
        compared[CONTROL] = _read_on(roles.controls[0].folder, split)
    compared |= {name: _read_on(run.folder, split) for name, run in roles.others.items()}
    if not compared and len(roles.seeds) == 1:
        raise UserError(
            f"{on.path.parent}: is all that was evaluated, there is nothing to compare it with; evaluate with "
            "--all-ablations, or name a control too"
        )
    for predictions in compared.values():
        check_same_questions(on, predictions)
    config, types = first.config, on.columns["question_type"]
    resampling = Resampling(config.evaluation.bootstrap_samples, config.training.seed)
    without = {name: predictions.scores(metric) for name, predictions in compared.items()}
    comparison = Comparison(
        split=split,
        metric=metric,
        checkpoint=on.checkpoint,
        has_prefix=first.has_prefix,
        runs=tuple(roles.told),
        against=compare_values(on.scores(metric), without, _paintings(on), types, resampling),
        seeds=_compare_seeds(roles, on, metric, split, resampling),
        answers=summarize_answers(
            on.columns["prediction"], on.columns["answer"], types, _training_majority(config), metric
        ),
    )
    path = on.path.with_name(COMPARISON)
    text = json.dumps(comparison.to_json(), indent=2)
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
    return comparison, path


def _answered_split(run_dir: Path) -> str:
    for split in _SPLITS:
        if (evaluation_folder(run_dir, split, "on") / "predictions.csv").is_file():
            return split
    raise UserError(
        f"{run_dir}: no split was answered with the prefix on; artkv evaluate --checkpoint {run_dir} --all-ablations"
    )


def _read_on(run_dir: Path, split: str) -> Predictions:
    folder = evaluation_folder(run_dir, split, "on")
    if not (folder / "predictions.csv").is_file():
        raise UserError(
            f"{run_dir}: has not answered the {split} split with the prefix on; "
            f"artkv evaluate --checkpoint {run_dir} --split {split}"
        )
    return read_predictions(folder)


def _read_ablation(run_dir: Path, split: str, name: str, on: Predictions) -> Predictions | None:
    """The answers under an ablation of the checkpoint that `on` is of; None if there are none."""
    folder = evaluation_folder(run_dir, split, ABLATIONS[name])
    if not (folder / "predictions.csv").is_file():
        return None
    read = read_predictions(folder)
    if read.checkpoint != on.checkpoint:
        raise UserError(
            f"{folder}: is of {read.checkpoint}, {on.path.parent} of {on.checkpoint}; evaluate one of the two with "
            "--all-ablations"
        )
    return read


def _paintings(predictions: Predictions) -> NDArray[np.str_]:
    return np.array(predictions.columns["image"])


def _compare_seeds(roles: Roles, on: Predictions, metric: str, split: str, resampling: Resampling) -> Seeds | None:
    """What the seeds of the run and of its control show together; None with one of each."""
    if len(roles.seeds) == 1 and len(roles.controls) < 2:
        return None
    on_of_seeds = [on, *(_read_on(run.folder, split) for run in roles.seeds[1:])]
    compared: dict[str, list[Predictions]] = {}
    missing = []
    for name in ABLATIONS:
        read = [_read_ablation(run.folder, split, name, own) for run, own in zip(roles.seeds, on_of_seeds, strict=True)]
        found = [predictions for predictions in read if predictions is not None]
        if len(found) == len(read):
            compared[name] = found
        elif found:
            missing.append(name)
    if roles.controls:
        compared[CONTROL] = [_read_on(run.folder, split) for run in roles.controls]
    for predictions in [*on_of_seeds, *(one for of_name in compared.values() for one in of_name)]:
        check_same_questions(on, predictions)
    painting_Q, by_type = _paintings(on), rows_by_type(on.columns["question_type"])
    with_QU = np.column_stack([predictions.scores(metric) for predictions in on_of_seeds])
    overall: dict[str, SeedSpread] = {}
    of_types: dict[str, dict[str, SeedSpread]] = {}
    for name, given in compared.items():
        without_QU = np.column_stack([predictions.scores(metric) for predictions in given])
        is_paired = name != CONTROL
        overall[name] = spread_over_seeds(with_QU, without_QU, painting_Q, resampling, is_paired)
        of_types[name] = {
            kind: spread_over_seeds(with_QU[rows], without_QU[rows], painting_Q[rows], resampling, is_paired)
            for kind, rows in by_type.items()
        }
    return Seeds(
        training_seeds=tuple(run.seed for run in roles.seeds),
        control_seeds=tuple(run.seed for run in roles.controls),
        warning=_warning(roles, missing),
        overall=overall,
        by_type=of_types,
    )


def _warning(roles: Roles, missing: Sequence[str]) -> str | None:
    warnings = []
    for number, of_what in ((len(roles.seeds), "the run"), (len(roles.controls), "the control")):
        if number == 1:
            warnings.append(f"one seed of {of_what} says nothing of its other seeds")
        elif 1 < number < FEW_SEEDS:
            warnings.append(
                f"{number} seeds of {of_what} are few: where seeds differ much, the intervals are too narrow"
            )
    if missing:
        warnings.append(f"{', '.join(missing)}: not evaluated for every seed")
    return "; ".join(warnings) or None


def _training_majority(config: Config) -> dict[str, str]:
    """The training split's most frequent answers; empty where its CSV file cannot be read."""
    try:
        records = [] if config.dataset.train is None else read_records(config.dataset.train).records
    except UserError:
        return {}
    return most_frequent_answers(
        [record.cells.get("answer", "") for record in records],
        [record.cells.get("question_type", "") for record in records],
    )
