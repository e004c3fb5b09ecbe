"""What init writes: the config with its comments, and tables of questions of its own."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from artkv.config.editing import yaml_scalar
from artkv.config.yaml_text import unwanted_character
from artkv.datasets.table_form import TableForm
from artkv.errors import UserError
from artkv.files import remove, told, write_whole
from artkv.reading import printable
from artkv.starting.art_encoder import ArtEncoder
from artkv.starting.questions import Question, have_own_ids
from artkv.starting.survey import ORIGIN, ORIGIN_BEGINS

_WIDTH = 100


@dataclass(frozen=True)
class Start:
    """A config that is to be written.

    tables: the table of each split. form: how they are written. images: the folder of the pictures. found, assumed:
    a sentence each, for the comments.
    """

    tables: Mapping[str, Path]
    form: TableForm
    images: Path
    blip2: str | Path
    art_encoder: ArtEncoder
    found: Sequence[str]
    assumed: Sequence[str]


def write_start(output: Path, start: Start, folder: Path, new: Mapping[str, Sequence[Question]]) -> None:
    """Writes the config, and before it the tables that are new into `folder`, which must not be there.

    new: the questions of each split that has a table of its own; empty where the user's files are read.
    """
    text = config_text(output, start)
    with told(f"--output {output}", "give another place"):
        if new:
            write_whole(folder, lambda place: _write_tables(place, new, start))
        try:
            write_whole(output, lambda place: place.write_text(text, encoding="utf-8"))
        except BaseException:
            if new:
                remove(folder)  # neither without the other
            raise


def config_text(output: Path, start: Start) -> str:
    """The YAML, whose comments say what was found and what was assumed."""
    base = Path(os.path.realpath(output.parent))
    form = start.form
    renamed = {role: name for role, name in form.columns.items() if name != role}
    lines = ["# Written by artkv init. What it found:"]
    lines += [line for text in start.found for line in _comment(text)]
    lines += ["#", "# What it assumed; change it where it is wrong:"]
    lines += [line for text in start.assumed for line in _comment(text)]
    lines += [
        "#",
        "# Paths of inputs are relative to this file, run.output_dir to the working directory. What is not named has",
        "# its default; artkv/config/recipes/artquest.yaml names every setting. Next: artkv check --config THIS_FILE",
        "model:",
        f"  blip2: {_path(start.blip2, base)}"
        + ("   # fetched at the first start; 15 GB" if isinstance(start.blip2, str) else ""),
        *_art_encoder(start.art_encoder, base),
        "dataset:",
        *(f"  {split}: {_path(path, base)}" for split, path in start.tables.items()),
        f"  image_root: {_path(start.images, base)}",
    ]
    if renamed:
        lines += ["  columns:                   # the names that the headers have"]
        lines += [f"    {role}: {yaml_scalar(name)}" for role, name in renamed.items()]
    if form.delimiter != "auto":
        lines.append(f"  delimiter: {form.delimiter}")
    if form.encoding != "utf-8":
        lines.append(f"  encoding: {form.encoding}")
    lines += [
        "training:",
        "  batch_size: 8              # most questions in a micro-step of one GPU; artkv plan says what fills it",
        "  num_epochs: 10",
        "run:",
        f"  output_dir: {_text(f'outputs/{output.stem}')}",
    ]
    return "\n".join(lines) + "\n"


def _write_tables(folder: Path, new: Mapping[str, Sequence[Question]], start: Start) -> None:
    folder.mkdir()
    columns = ["image", "question", "answer"]
    if any(question.question_type for questions in new.values() for question in questions):
        columns.append("question_type")
    if all(have_own_ids(questions) for questions in new.values()):
        columns.append("question_id")
    for split, questions in new.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for question in questions:
                cells = vars(question) | {"image": question.picture.relative_to(start.images).as_posix()}
                writer.writerow([cells[column] for column in columns])
    origin = [f"{ORIGIN_BEGINS}. The user's own files are as they were.", "", *start.found, *start.assumed]
    (folder / ORIGIN).write_text("\n".join(origin) + "\n", encoding="utf-8")


def _art_encoder(encoder: ArtEncoder, base: Path) -> list[str]:
    entry, begins = ("efficientnet:", "  ") if encoder.is_efficientnet else ("art_encoders:", "- ")
    path = _path(encoder.checkpoint or "checkpoints/efficientnet_b3_wikiart.pth", base)
    by = "the checkpoint records" if encoder.is_recorded else "the checkpoint was trained"
    return [
        f"{entry:<28} # the frozen art encoder",
        f"{begins}checkpoint: {path}",
        f"  architecture: {_text(encoder.architecture)}",
        f"  {f'image_size: {encoder.image_size}':<26} # these three as {by}",
        f"  mean: {list(encoder.mean)}",
        f"  std: {list(encoder.std)}",
    ]


def _comment(text: str) -> list[str]:
    """A sentence as lines of a comment."""
    lines, line = [], "# -"
    for word in printable(text).split():
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "#  "
        line += f" {word}"
    return [*lines, line]


def _path(path: Path | str, base: Path) -> str:
    """A path as the config has it: relative where it lies below the config's folder. A hub id stays."""
    if isinstance(path, str):
        return _text(path)
    real = Path(os.path.realpath(path))
    return _text(str(real.relative_to(base) if real.is_relative_to(base) else real))


def _text(text: str) -> str:
    if (found := unwanted_character(text)) is not None:
        raise UserError(f"{printable(text)}: holds {found}, which no config can name; rename it")
    return yaml_scalar(text)
