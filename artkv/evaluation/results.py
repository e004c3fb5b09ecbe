"""Writes an evaluation's predictions and scores, and reads them again."""

import csv
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from artkv.config import Config
from artkv.datasets.shards import folder_of_names
from artkv.errors import UserError
from artkv.evaluation.scores import Choice, Scores, exact_match, score_pairs, token_f1
from artkv.files import check_writable, reason_of, told, write_together
from artkv.reading import from_written, printable, read_object, read_regular, remedy_for
from artkv.run_folder.layout import best_checkpoint

if TYPE_CHECKING:  # torch takes seconds, which a comparison of what was written need not wait for
    from artkv.datasets.table import QuestionTable

PREDICTIONS, METRICS_FILE, COMPARISON = "predictions.csv", "metrics.json", "comparison.json"
_EVALUATE = "run artkv evaluate again"
# That one question is known by, and what was answered.
_READ = ("question_id", "image", "question", "answer", "question_type", "prediction")
# What was chosen among candidates, and with which probability; columns that are there where choices were asked for.
CHOICE, CHOICE_PROBABILITY, GOLD_PROBABILITY = "choice", "choice_probability", "gold_probability"
# Whose prefix a shuffled painting got.
PREFIX_OF = "prefix_of"
EXACT_MATCH = "exact_match"
_READ_IF_THERE = (PREFIX_OF, CHOICE, CHOICE_PROBABILITY, GOLD_PROBABILITY)
# As `_rounded` writes it.
_PROBABILITY = re.compile(r"[0-9](\.[0-9]+)?(e-[0-9]{2})?")
_MOST_PREDICTIONS_BYTES = 2 * 2**30
# How an evaluation's answers were computed: where it differs, predictions are compared only if their runs were trained
# so. And the type that the model computed in, which decides ties and little more.
ALIKE = {"prompt": "dataset.prompt", "max_new_tokens": "evaluation.max_new_tokens", "quantised": "quantised weights"}
DTYPE = "dtype"
MAX_NEW_TOKENS = "max_new_tokens"
CONDITIONS = (*ALIKE, DTYPE)
_CHOSEN_THERE = " is the best of its run on val, so its scores there are too good; report those on test"
# Of the splits that a run has answered, the first of these, where none is asked for.
_SPLITS = ("test", "val", "train")


def evaluation_folder(run_dir: Path, split: str, ablation: str) -> Path:
    """Where a run's evaluation is, such as `eval/test-on-blank`."""
    return run_dir / "eval" / f"{split}-{ablation}"


def first_answered_split(run_dir: Path) -> str | None:
    """The split that a comparison or a report is of where none is asked for; None where the run has answered none."""
    return next((split for split in _SPLITS if is_answered(run_dir, split, "on")), None)


def is_answered(run_dir: Path, split: str, ablation: str) -> bool:
    """Whether a run has answered a split under an ablation, by its name as a folder."""
    return (evaluation_folder(run_dir, split, ablation) / PREDICTIONS).is_file()


@dataclass(frozen=True)
class Answers:
    """The answers to a table's questions under an ablation.

    image_root: the folder of the pictures. art_source: for each painting the one whose prefix it got, (I,); None where
    each had its own, or none. choices: what each question chose, or None where it did not; None: none was to.
    """

    table: "QuestionTable"
    answers: Sequence[str]
    image_root: Path
    art_source: NDArray[np.int64] | None = None
    choices: Sequence[Choice | None] | None = None

    def columns(self) -> dict[str, list[Any]]:
        """Of `predictions.csv`: a row a question. `image` is the painting's name: its path below `image_root`."""
        table = self.table
        folder = folder_of_names(self.image_root)
        names = [path.relative_to(folder).as_posix() for path in table.painting_paths]
        sources = [""] * len(names) if self.art_source is None else [names[source] for source in self.art_source]
        pairs = list(zip(self.answers, table.answers, strict=True))
        columns = {
            "question_id": list(table.question_ids),
            "image": [names[painting] for painting in table.painting_of_row],
            "question": list(table.questions),
            "answer": list(table.answers),
            "prediction": list(self.answers),
            "question_type": list(table.question_types),
            EXACT_MATCH: [int(exact_match(prediction, answer)) for prediction, answer in pairs],
            "token_f1": [round(token_f1(prediction, answer), 4) for prediction, answer in pairs],
            PREFIX_OF: [sources[painting] for painting in table.painting_of_row],
        }
        if self.choices is not None:
            columns |= {
                CHOICE: ["" if choice is None else choice.text for choice in self.choices],
                CHOICE_PROBABILITY: [_rounded(choice and choice.probability) for choice in self.choices],
                GOLD_PROBABILITY: [_rounded(choice and choice.gold_probability) for choice in self.choices],
            }
        return columns


def _rounded(probability: float | None) -> float | str:
    return "" if probability is None else round(probability, 6)


def check_places(folders: Sequence[Path]) -> None:
    """Raises `UserError` unless evaluations can be written into all of `folders`; see `check_writable`."""
    for folder in folders:
        for name in (PREDICTIONS, METRICS_FILE):
            check_writable(folder / name, f"{folder}: the evaluation's folder")


def write_results(folder: Path, answers: Answers, scores: Scores, conditions: Mapping[str, Any]) -> None:
    """Writes `predictions.csv`, a row a question, and `metrics.json` with the scores and `conditions`.

    Both are replaced whole, and together; called on rank 0 alone. Raises `UserError` where there is no room for them.
    """
    columns = answers.columns()

    def write_predictions(path: Path) -> None:
        # surrogateescape: names of files on disk may hold bytes that are not UTF-8.
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    text = json.dumps({**conditions, **scores.to_json()}, indent=2)
    with told(str(folder), "make room there, and evaluate again"):
        write_together(
            {
                folder / PREDICTIONS: write_predictions,
                folder / METRICS_FILE: lambda path: path.write_text(text, encoding="utf-8"),
            }
        )


@dataclass(frozen=True)
class Predictions:
    """A `predictions.csv`, read: its columns, in the order of the split's CSV file, as they are written there.

    checkpoint: its name. conditions: how they were computed, by `CONDITIONS`; empty of evaluations from before these
    were written. candidates: of each question type, what the column `choice` was chosen among; None where there
    is no such column.
    """

    path: Path
    columns: Mapping[str, list[str]]
    checkpoint: str
    candidates: Mapping[str, list[str]] | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["answer"])

    def scores(self, metric: str) -> NDArray[np.float64]:
        """(Q,) each question's score."""
        return score_pairs(self.columns["prediction"], self.columns["answer"], [metric])[:, 0]

    def of_choices(self) -> Self:
        """What was chosen in the place of what was generated, of the questions that chose; `UserError` if none did."""
        if self.candidates is None:
            raise UserError(f"{self.path}: has no choices; evaluate again with --choices")
        columns = {**self.columns, "prediction": self.columns[CHOICE]}
        rows = [row for row, choice in enumerate(self.columns[CHOICE]) if choice]
        return replace(self, columns={name: [column[row] for row in rows] for name, column in columns.items()})


def read_predictions(folder: Path) -> Predictions:
    """The predictions in an evaluation's folder; `UserError` if they cannot be read."""
    path = folder / PREDICTIONS
    try:
        text = read_regular(path, _MOST_PREDICTIONS_BYTES).decode("utf-8", "surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in _READ if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path}: has no column {missing[0]}; evaluate again")
        names = [*_READ, *(name for name in _READ_IF_THERE if name in (reader.fieldnames or ()))]
        rows = list(reader)
    except OSError as error:
        remedy = remedy_for(error, "evaluate again")
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error}); evaluate again") from None
    metrics = _read_metrics(folder / METRICS_FILE)
    if not isinstance(checkpoint := metrics.get("checkpoint"), str):
        raise UserError(f"{folder / METRICS_FILE}: cannot be read (it lacks checkpoint, a text); {_EVALUATE}")
    candidates = None
    if CHOICE in names:
        choices = _scores(metrics, folder / METRICS_FILE).choices
        if choices is None:
            raise UserError(
                f"{folder / METRICS_FILE}: cannot be read (it lacks choices, which {PREDICTIONS} has); {_EVALUATE}"
            )
        candidates = choices.candidates
    scored = _scores(metrics, folder / METRICS_FILE).overall.count
    if any(None in row for row in rows):  # where csv puts what has no name
        number = next(number for number, row in enumerate(rows, start=1) if None in row)
        raise UserError(f"{path}: row {number} has more fields than the header: the file was changed; evaluate again")
    if len(rows) != scored or any(row[name] is None for row in rows for name in names):
        raise UserError(
            f"{path}: has {len(rows)} rows, the last maybe cut, and {METRICS_FILE} {scored}; evaluate again"
        )
    _check_scored(path, rows)
    columns = {name: [row[name] or "" for row in rows] for name in names}
    conditions = {name: metrics[name] for name in CONDITIONS if name in metrics}
    return Predictions(path, columns, Path(checkpoint).name, candidates, conditions)


def _check_scored(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Raises `UserError` with the first row whose scores are not those of what it says was answered and chosen."""
    for number, row in enumerate(rows, start=1):
        if EXACT_MATCH in row:
            expected = str(int(exact_match(row["prediction"], row["answer"])))
            if row[EXACT_MATCH] != expected:
                raise UserError(
                    f"{path}: row {number}: {EXACT_MATCH} = {row[EXACT_MATCH]!r:.80}, and its prediction and answer "
                    f"make {expected}: the file was changed; evaluate again"
                )
        for name in (CHOICE_PROBABILITY, GOLD_PROBABILITY):
            if (given := row.get(name)) and not (_PROBABILITY.fullmatch(given) and float(given) <= 1):
                raise UserError(f"{path}: row {number}: {name} = {given!r:.80} is no probability; evaluate again")


def read_scores(folder: Path) -> Scores:
    """The scores in an evaluation's folder; `UserError` if they cannot be read."""
    path = folder / METRICS_FILE
    return _scores(_read_metrics(path), path)


def _read_metrics(path: Path) -> dict[str, Any]:
    tree = read_object(path, _EVALUATE)
    if tree is None:
        raise UserError(f"{path}: cannot be read (No such file or directory); {_EVALUATE}")
    split = tree.get("split", "")
    if not isinstance(split, str) or (split and not path.parent.name.startswith(f"{split}-")):
        raise UserError(
            f"{path}: split = {split!r:.80}, and it lies in the folder {printable(path.parent.name)}; put that split's "
            f"own file there, or {_EVALUATE}"
        )
    return tree


def _scores(metrics: dict[str, Any], path: Path) -> Scores:
    return from_written(Scores.from_json, metrics, str(path), _EVALUATE)


def selection_note(run_dir: Path, split: str, checkpoint: str) -> str | None:
    """That a checkpoint was chosen by the very questions it is scored on, by its name; None where it was not."""
    if split != "val" or best_checkpoint(run_dir) != checkpoint:
        return None
    return f"{checkpoint}{_CHOSEN_THERE}"


def is_selection_note(note: str) -> bool:
    """Whether a note is one of `selection_note`, of any checkpoint."""
    return note.endswith(_CHOSEN_THERE)


def differing_condition(first: Predictions, other: Predictions, name: str) -> tuple[Any, Any] | None:
    """A condition of two sets of predictions, as they have it; None where it is the same, or one is of before it."""
    here, there = (given.conditions.get(name) for given in (first, other))
    return None if here is None or there is None or here == there else (here, there)


def trained_otherwise(first: Config, other: Config) -> frozenset[str]:
    """The conditions of `ALIKE` that two trainings' own settings have otherwise, so that their answers must, too."""
    of_first, of_other = (_conditions_of(config) for config in (first, other))
    return frozenset(name for name, setting in of_first.items() if setting != of_other[name])


def _conditions_of(config: Config) -> dict[str, object]:
    frozen = config.frozen
    quantising = (
        frozen.opt if frozen.opt in ("int8", "nf4") else None,
        (frozen.opt, frozen.vit) if frozen.storage == "int8" else None,
    )
    return {
        "prompt": config.dataset.prompt,
        MAX_NEW_TOKENS: config.evaluation.max_new_tokens,
        "quantised": quantising,
    }


def check_same_questions(first: Predictions, other: Predictions, may_differ: Collection[str] = ()) -> None:
    """Raises `UserError` unless two sets of predictions are on the same questions, asked and answered alike.

    may_differ: conditions that need not be alike. It names the first row, or the setting, that differs.
    """
    for name, setting in ALIKE.items():
        differing = None if name in may_differ else differing_condition(first, other, name)
        if differing is not None:
            here, there = differing
            raise UserError(
                f"{other.path}: was answered with {setting} = {there!r:.80}, {first.path} with {here!r:.80}; evaluate "
                "both alike"
            )
    for row in range(min(len(first), len(other))):
        for name in _READ[:-1]:
            here, there = first.columns[name][row], other.columns[name][row]
            if here != there:
                raise UserError(
                    f"{other.path}: is not on the questions of {first.path}: in row {row + 1} {name} is {there!r}, "
                    f"not {here!r}; evaluate both on the same CSV file and pictures"
                )
    if len(first) != len(other):
        raise UserError(
            f"{other.path}: has {len(other)} questions, {first.path} {len(first)}; evaluate both on the same CSV file"
        )
