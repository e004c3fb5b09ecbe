"""What a run's folder holds about a run: its settings, its curves, its answers and scores.

Nothing here takes a model, and nothing is computed anew.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from artkv import shell
from artkv.config import Config, load_config
from artkv.errors import UserError
from artkv.evaluation.comparison import Comparison
from artkv.evaluation.results import (
    COMPARISON,
    Predictions,
    check_same_questions,
    evaluation_folder,
    first_answered_split,
    read_predictions,
    read_scores,
    trained_otherwise,
)
from artkv.evaluation.run_roles import (
    ABLATIONS,
    CONTROL,
    ablations_of,
    lacked_encoders,
    masked_encoders,
    open_run,
    without_name,
)
from artkv.evaluation.scores import Scores
from artkv.reading import Count, from_written, read_object, to_record
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint
from artkv.run_folder.layout import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS
from artkv.run_folder.status import RunStatus, read_metrics, read_status

# Ablations by the names of their folders, in the order of the report's columns, and how the report calls them.
LABELS = {"on": "prefix on", "off": "prefix off", "shuffled": "shuffled", "on-blank": "question only"}
# What an evaluation of a run without some of the art encoders is named.
RETRAINED = "retrained"


@dataclass(frozen=True)
class _Gpu:
    name: str
    memory_bytes: Count


@dataclass(frozen=True)
class _Git:
    commit: str | None
    changed: bool | None


@dataclass(frozen=True)
class _Environment:
    """What of environment.json the report tells."""

    gpus: list[_Gpu] | None
    cpu: str | None
    cpu_cores_usable: Count | None
    host_memory_bytes: Count | None
    platform: str | None
    python: str | None
    cuda_runtime: str | None
    packages: dict[str, str | None] | None
    variables: dict[str, str] | None
    git: _Git | None


@dataclass(frozen=True)
class Evaluation:
    """A split answered under one ablation.

    name: the ablation's, `control` or `retrained`. label: how the report calls it.
    """

    name: str
    label: str
    predictions: Predictions
    scores: Scores

    @property
    def checkpoint(self) -> str:
        """The name of the one that answered."""
        return self.predictions.checkpoint


@dataclass(frozen=True)
class Evidence:
    """All that the report says, as the run's folder has it.

    checkpoint: the one that answered; None where it is no longer there. environment: environment.json, empty where it
    is missing. training, validations: records of metrics.jsonl. evaluations: of the split, the prefix on first, the
    controls last. comparison: None where it was not made.
    """

    run_dir: Path
    status: RunStatus
    config: Config
    checkpoint: Checkpoint | None
    environment: Mapping[str, Any]
    training: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    split: str
    evaluations: Sequence[Evaluation]
    comparison: Comparison | None

    @property
    def has_prefix(self) -> bool:
        """Whether the run has a prefix to judge; a control has none."""
        return self.config.kv_modulation.enabled


def read_evidence(run_dir: Path, controls: Sequence[Path] = (), split: str | None = None) -> Evidence:
    """Reads a run's folder, and the answers of its controls.

    split: None for the test questions if they were answered, else the validation's, else those of training.

    Raises:
        UserError: if the folder holds no run or no evaluation, or a control is none or did not answer the same
            questions.
    """
    status = read_status(run_dir, wait_seconds=0)
    split = split or first_answered_split(run_dir)
    if split is None:
        raise UserError(
            f"{run_dir}: has no evaluation to report; {_how_to_evaluate(run_dir, _split_with_table(run_dir))}"
        )
    if not evaluation_folder(run_dir, split, "on").is_dir():
        raise UserError(f"{run_dir}: the {split} questions were not answered; {_how_to_evaluate(run_dir, split)}")
    first = _read_evaluation(run_dir, split, "on", LABELS["on"])
    config, checkpoint = _settings(run_dir, first.checkpoint)
    evaluations = [
        _read_evaluation(run_dir, split, name, label)
        for name, label in labels_of(config).items()
        # Without a prefix off is on.
        if evaluation_folder(run_dir, split, name).is_dir() and (config.kv_modulation.enabled or name != "off")
    ]
    for evaluation in evaluations[1:]:
        check_same_questions(first.predictions, evaluation.predictions)
    evaluations += _read_controls(config, first.predictions, controls, split)
    training, validations = read_metrics(run_dir / METRICS, tells=False)  # read_status has told it
    return Evidence(
        run_dir=run_dir,
        status=status,
        config=config,
        checkpoint=checkpoint,
        environment=_read_environment(run_dir / ENVIRONMENT),
        training=training,
        validations=validations,
        split=split,
        evaluations=evaluations,
        comparison=_read_comparison(evaluation_folder(run_dir, split, "on") / COMPARISON),
    )


def labels_of(config: Config) -> dict[str, str]:
    """`LABELS` of a run, each of several art encoders' own before the question alone."""
    blank = {"on-blank": LABELS["on-blank"]}
    masked = {folder: name for name, folder in ablations_of(config).items() if name not in ABLATIONS}
    return {name: label for name, label in LABELS.items() if name not in blank} | masked | blank


def _read_controls(config: Config, on: Predictions, controls: Sequence[Path], split: str) -> list[Evaluation]:
    """Those without a prefix first, then those without some of the run's art encoders."""
    trained: dict[Path, Config] = {}
    plain: list[Path] = []
    retrained: list[tuple[str, Path]] = []
    for control in controls:
        run = open_run(control)
        trained[control] = run.config
        lacked = lacked_encoders(config, run.config)
        if run.has_prefix and not lacked:
            remedy = "without one" + (", or without some of this run's encoders" if masked_encoders(config) else "")
            raise UserError(f"{control}: was trained with a prefix and is no control; give runs {remedy}")
        if not evaluation_folder(control, split, "on").is_dir():
            raise UserError(f"{control}: the {split} questions were not answered; {_how_to_evaluate(control, split)}")
        if lacked:
            retrained.append((without_name(lacked), control))
        else:
            plain.append(control)
    evaluations = [
        _read_evaluation(control, split, "on", CONTROL if len(plain) == 1 else f"{CONTROL} {place}", name=CONTROL)
        for place, control in enumerate(plain, start=1)
    ]
    names = [name for name, _ in retrained]
    for place, (name, control) in enumerate(retrained):
        label = name if names.count(name) == 1 else f"{name} {names[:place].count(name) + 1}"
        evaluations.append(_read_evaluation(control, split, "on", label, name=RETRAINED))
    for control, evaluation in zip((*plain, *(path for _, path in retrained)), evaluations, strict=True):
        check_same_questions(on, evaluation.predictions, trained_otherwise(config, trained[control]))
    return evaluations


def _split_with_table(run_dir: Path) -> str:
    """The first split that the run has questions of; train, which each run has, where its settings cannot be read."""
    with suppress(UserError):
        dataset = load_config(run_dir / CONFIG).dataset
        return next((split for split in ("test", "val") if getattr(dataset, split) is not None), "train")
    return "train"


def _how_to_evaluate(run_dir: Path, split: str) -> str:
    """What to type for the answers that are missing."""
    best = run_dir / "best"
    checkpoint = best if best.exists() else run_dir
    command = shell.command("artkv", "evaluate", "--checkpoint", checkpoint, "--split", split, "--all-ablations")
    return f"make it with: {command}"


def _read_evaluation(run_dir: Path, split: str, ablation: str, label: str, name: str | None = None) -> Evaluation:
    folder = evaluation_folder(run_dir, split, ablation)
    return Evaluation(name or ablation, label, read_predictions(folder), read_scores(folder))


def _read_comparison(path: Path) -> Comparison | None:
    remedy = "run artkv compare again"
    tree = read_object(path, remedy)
    return None if tree is None else from_written(Comparison.from_json, tree, str(path), remedy)


def _read_environment(path: Path) -> dict[str, Any]:
    """What it says as far as this artkv knows it; what it lacks is None."""
    remedy = "delete it, to have a report without it"
    tree = read_object(path, remedy)
    if tree is None:
        return {}
    known = {field.name: tree.get(field.name) for field in fields(_Environment)}
    to_record(_Environment, known, str(path), remedy)
    return {name: value for name, value in known.items() if value is not None}


def _settings(run_dir: Path, checkpoint_name: str) -> tuple[Config, Checkpoint | None]:
    """The config of the checkpoint that answered, and the checkpoint if it is still there."""
    folder = run_dir / CHECKPOINTS / checkpoint_name
    if folder.is_dir():
        checkpoint = open_checkpoint(folder)
        return checkpoint.config, checkpoint
    print(f"artkv: {folder}: is no longer there; settings are those of {run_dir / CONFIG}", file=sys.stderr)
    return load_config(run_dir / CONFIG), None
