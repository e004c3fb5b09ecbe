"""Compares the evaluations in runs' folders, and writes `comparison.json`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from artkv.config import Config
from artkv.datasets.records import read_records
from artkv.datasets.table_form import TableForm
from artkv.errors import UserError
from artkv.evaluation.answer_summary import most_frequent_answers, summarize_answers
from artkv.evaluation.comparison import Comparison, compare_values
from artkv.evaluation.resampling import Resampling
from artkv.evaluation.results import (
    ALIKE,
    COMPARISON,
    CONDITIONS,
    DTYPE,
    MAX_NEW_TOKENS,
    Predictions,
    check_same_questions,
    differing_condition,
    evaluation_folder,
    first_answered_split,
    is_answered,
    read_predictions,
    selection_note,
    trained_otherwise,
)
from artkv.evaluation.run_roles import BASELINES, CONTROL, Roles, Run, ablations_of, masked_encoders, roles_of
from artkv.evaluation.scores import ACCURACY, rows_by_type
from artkv.evaluation.seed_spread import FEW_SEEDS, Seeds, SeedSpreads, spreads_over_seeds
from artkv.files import check_writable, told, write_whole

_ON = "the prefix on"


def compare_runs(runs: Sequence[Run], split: str | None, metric: str) -> tuple[Comparison, Path]:
    """Compares the first run's prefix on with its ablations and with the prefix on of the others.

    split: None for the first of test, val and train that the first run has answered. Writes `comparison.json` beside
    the first run's predictions with the prefix on, and returns what it holds and its path. `UserError` for evaluations
    that are missing, of different checkpoints or not on the same questions.
    """
    first = runs[0]
    roles = roles_of(runs)
    # Before seconds of resampling.
    evaluated = _Evaluated(split or _answered_split(first.folder), metric)
    on = evaluated.on(first)
    path = on.path.with_name(COMPARISON)
    check_writable(path, f"{path.parent}: the comparison's folder")
    answers = _read_answers(roles, on, evaluated)
    compared = {name: given for name, of_seeds in answers.own.items() if (given := of_seeds[0]) is not None}
    compared |= {name: of_seeds[0] for name, of_seeds in answers.trainings.items()}
    if not compared and len(roles.seeds) == 1:
        raise UserError(
            f"{on.path.parent}: is all that was evaluated, there is nothing to compare it with; evaluate with "
            "--all-ablations, or name a control too"
        )
    for run, _, predictions in answers.told(roles):
        _check_comparable(first, on, run, predictions, metric)
    config, types = first.config, on.columns["question_type"]
    resampling = Resampling(config.evaluation.bootstrap_samples, config.training.seed)
    without = {name: predictions.scores(metric) for name, predictions in compared.items()}
    baselines = {name: without[name] for name in _shuffled_against(without)}
    on_Q, painting_Q = on.scores(metric), _paintings(on)
    comparison = Comparison(
        split=evaluated.split,
        metric=metric,
        checkpoint=on.checkpoint,
        has_prefix=first.has_prefix,
        encoders=masked_encoders(first.config),
        runs=tuple(roles.told),
        against=compare_values(on_Q, without, painting_Q, types, resampling),
        shuffled_over=compare_values(without["shuffled"], baselines, painting_Q, types, resampling)
        if baselines
        else {},
        notes=_notes(roles, answers, evaluated),
        seeds=_compare_seeds(roles, answers, metric, resampling),
        answers=summarize_answers(
            on.columns["prediction"], on.columns["answer"], types, _training_majority(config), metric
        ),
    )
    text = json.dumps(comparison.to_json(), indent=2)
    with told(str(path), "make room there, and compare again"):
        write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
    return comparison, path


def _answered_split(run_dir: Path) -> str:
    split = first_answered_split(run_dir)
    if split is None:
        raise UserError(
            f"{run_dir}: no split was answered with the prefix on; artkv evaluate --checkpoint {run_dir} "
            "--all-ablations"
        )
    return split


def _notes(roles: Roles, answers: "_Answers", evaluated: "_Evaluated") -> tuple[str, ...]:
    """That the questions chose the checkpoint, and what was answered otherwise than the prefix on."""
    first, on = roles.seeds[0], answers.on[0]
    chosen = selection_note(first.folder, evaluated.split, on.checkpoint)
    told = list(answers.told(roles))
    # Of each difference, who has it: names with the seeds.
    found: dict[tuple[str, str], list[int]] = {}
    for run, name, predictions in told:
        for condition in CONDITIONS:
            differing = differing_condition(on, predictions, condition)
            # A choice is among candidates, however long an answer may be.
            if differing is None or (condition == MAX_NEW_TOKENS and evaluated.metric == ACCURACY):
                continue
            found.setdefault((name, _how_it_differs(condition, *differing)), []).append(run.seed)
    notes = [chosen] if chosen else []
    for (name, how), seeds in found.items():
        # The first run itself has none.
        is_each = len(seeds) == sum(name == other for _, other, _ in told) and name != _ON
        of_seeds = "" if is_each else f" of seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        notes.append(f"{name}{of_seeds} was answered {how}")
    return tuple(notes)


def _how_it_differs(condition: str, here: object, there: object) -> str:
    if condition == DTYPE:
        return f"in {there}, {_ON} in {here}, which alone may change answers"
    return f"with {ALIKE[condition]} = {there!r:.80}, {_ON} with {here!r:.80}, as they were trained"


def _shuffled_against(compared: Iterable[str]) -> list[str]:
    """Of what is compared, what shuffled prefixes are held against; empty where they were not evaluated."""
    names = list(compared)
    return [name for name in BASELINES if name in names and "shuffled" in names]


def _other_trainings(roles: Roles) -> dict[str, list[Run]]:
    """The runs that were trained otherwise, as without the prefix, or an encoder: of each name those of all seeds."""
    return ({CONTROL: roles.controls} if roles.controls else {}) | roles.without | roles.others


class _Evaluated(NamedTuple):
    """Reads what runs answered to a split; with the metric `accuracy` what they chose."""

    split: str
    metric: str

    def on(self, run: Run) -> Predictions:
        """The answers with the prefix on."""
        if not is_answered(run.folder, self.split, "on"):
            raise UserError(
                f"{run.folder}: has not answered the {self.split} split with the prefix on; "
                f"artkv evaluate --checkpoint {run.folder} --split {self.split}"
            )
        return self._read(evaluation_folder(run.folder, self.split, "on"))

    def ablation(self, run: Run, name: str, on: Predictions) -> Predictions | None:
        """The answers under an ablation of the checkpoint that `on` is of; None if there are none."""
        ablation = ablations_of(run.config)[name]
        folder = evaluation_folder(run.folder, self.split, ablation)
        if not is_answered(run.folder, self.split, ablation):
            return None
        read = self._read(folder)
        if read.checkpoint != on.checkpoint:
            raise UserError(
                f"{folder}: is of {read.checkpoint}, {on.path.parent} of {on.checkpoint}; evaluate one of the two with "
                "--all-ablations"
            )
        return read

    def _read(self, folder: Path) -> Predictions:
        read = read_predictions(folder)
        return read.of_choices() if self.metric == ACCURACY else read


class _Answers(NamedTuple):
    """What was read of the runs: those with the prefix on, their own ablations, and other trainings; by their seeds.

    own: None where a seed lacks an ablation; those that none has are left out.
    """

    on: list[Predictions]
    own: dict[str, list[Predictions | None]]
    trainings: dict[str, list[Predictions]]

    def told(self, roles: Roles) -> Iterator[tuple[Run, str, Predictions]]:
        """All but the first with the prefix on, each with its run and what it is called."""
        yield from ((run, _ON, read) for run, read in zip(roles.seeds[1:], self.on[1:], strict=True))
        for name, of_seeds in self.own.items():
            yield from ((run, name, read) for run, read in zip(roles.seeds, of_seeds, strict=True) if read is not None)
        for name, runs in _other_trainings(roles).items():
            yield from ((run, name, read) for run, read in zip(runs, self.trainings[name], strict=True))


def _read_answers(roles: Roles, on: Predictions, evaluated: _Evaluated) -> _Answers:
    on_of_seeds = [on, *(evaluated.on(run) for run in roles.seeds[1:])]
    own = {
        name: [evaluated.ablation(run, name, of_run) for run, of_run in zip(roles.seeds, on_of_seeds, strict=True)]
        for name in ablations_of(roles.seeds[0].config)
    }
    return _Answers(
        on_of_seeds,
        {name: of_seeds for name, of_seeds in own.items() if any(read is not None for read in of_seeds)},
        {name: [evaluated.on(run) for run in runs] for name, runs in _other_trainings(roles).items()},
    )


def _check_comparable(first: Run, on: Predictions, run: Run, other: Predictions, metric: str) -> None:
    """Raises `UserError` if two sets of predictions are not on the same questions, or did not choose among the same."""
    may_differ = trained_otherwise(first.config, run.config)
    if metric == ACCURACY:
        may_differ |= {MAX_NEW_TOKENS}
        if on.candidates != other.candidates:
            raise UserError(
                f"{other.path}: chose among other candidates than {on.path}; evaluate both with the same --choices FILE"
            )
    check_same_questions(on, other, may_differ)


def _paintings(predictions: Predictions) -> NDArray[np.str_]:
    return np.array(predictions.columns["image"])


def _compare_seeds(roles: Roles, answers: _Answers, metric: str, resampling: Resampling) -> Seeds | None:
    """What the seeds of the run, of its control and of other runs show together; None with one of each."""
    trainings = answers.trainings
    if len(roles.seeds) == 1 and all(len(runs) < 2 for runs in trainings.values()):
        return None
    found = {name: [read for read in of_seeds if read is not None] for name, of_seeds in answers.own.items()}
    missing = [name for name, of_seeds in found.items() if len(of_seeds) < len(roles.seeds)]
    compared = {name: of_seeds for name, of_seeds in found.items() if name not in missing} | trainings
    on = answers.on[0]
    painting_Q, by_type = _paintings(on), rows_by_type(on.columns["question_type"])
    scores_QU = {
        name: np.column_stack([predictions.scores(metric) for predictions in given])
        for name, given in {"on": answers.on, **compared}.items()
    }

    def spreads(with_name: str, names: Iterable[str]) -> dict[str, SeedSpreads]:
        return {
            name: spreads_over_seeds(
                scores_QU[with_name], scores_QU[name], painting_Q, by_type, resampling, is_paired=name not in trainings
            )
            for name in names
        }

    return Seeds(
        training_seeds=tuple(run.seed for run in roles.seeds),
        control_seeds=tuple(run.seed for run in roles.controls),
        warning=_warning(roles, missing),
        against=spreads("on", compared),
        shuffled_over=spreads("shuffled", _shuffled_against(compared)),
    )


def _warning(roles: Roles, missing: Sequence[str]) -> str | None:
    warnings = []
    groups = [(len(roles.seeds), "the run"), (len(roles.controls), "the control")]
    groups += [(len(runs), f"the run {name}") for name, runs in (roles.without | roles.others).items()]
    for number, of_what in groups:
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
        path, form = config.dataset.train, TableForm.of(config.dataset)
        records = [] if path is None else read_records(path, form=form).records
    except UserError:
        return {}
    return most_frequent_answers(
        [record.cells.get("answer", "") for record in records],
        [record.cells.get("question_type", "") for record in records],
    )
