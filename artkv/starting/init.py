"""`artkv init`: looks at a folder of pictures and tables, and writes the config of a training on them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from artkv.config.dataset_schema import SPLITS
from artkv.config.table_settings import Encoding
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.problems import Problem, format_problems, kind_of, quoted
from artkv.datasets.table import read_table
from artkv.datasets.table_form import TableForm
from artkv.errors import UserError
from artkv.file_kinds import WEIGHTS
from artkv.files import check_writable
from artkv.models.files.foreign_files import check_is_there
from artkv.models.files.hub import is_hub_id
from artkv.models.files.hub_ids import did_you_mean
from artkv.reading import kind_at, printable
from artkv.starting.arguments import InitOptions
from artkv.starting.art_encoder import art_encoder_at
from artkv.starting.headers import CAPTIONS, NEEDED, OPTIONS, check_given, find_columns, others_like, why_no_questions
from artkv.starting.questions import Question, have_own_ids, paintings, read_questions
from artkv.starting.splits import by_split, share_out, split_of
from artkv.starting.survey import Survey, picture_roots, share_found, survey
from artkv.starting.tables import Table, check_encoding, open_table
from artkv.starting.writing import Start, write_start

_BLIP2 = "Salesforce/blip2-opt-2.7b"
_MOST_SHOWN = 20


@dataclass(frozen=True)
class Report:
    """What was found, what was assumed, and which files were left alone and why; a sentence each."""

    found: list[str]
    assumed: list[str]
    unused: list[str]


def init(options: InitOptions) -> Report:
    """Writes the config, and tables of its own where the user's cannot be read as they are.

    Raises:
        UserError: if there are no pictures or no questions, a row is wrong, or there is something at `output` already.
    """
    folder = options.output.with_name(f"{options.output.stem}_data")
    _check_options(options, folder)
    seen = survey(options.folder, "FOLDER")
    pictures = seen if options.images is None else survey(options.images, "--images")
    top = options.images or options.folder
    if not pictures.num_pictures:
        raise UserError(
            f"{printable(top)}: no pictures below it{pictures.told_of_others()}; give the folder that holds them with "
            "--images"
        )
    report = Report([], [], [])
    called = "FOLDER or --images" if options.images is None else "--images"
    indices = [ImageIndex(root, called=called) for root in picture_roots(pictures, top)]
    tables = _tables_of_questions(options, seen, indices, report)
    images = max(indices, key=lambda images: _share(tables, images))
    questions, dropped = _read_all(by_split(tables), images, options, report)
    _tell_pictures(pictures, images, questions, report)
    art_encoder = art_encoder_at(options.art_encoder)
    if art_encoder.is_recorded:
        report.found.append(
            f"{printable(options.art_encoder)}: {art_encoder.architecture}, as its training recorded it"
        )
    else:
        art = f"{printable(options.art_encoder)} was trained as efficientnet below says"
        report.assumed.append(_NO_ART_ENCODER if options.art_encoder is None else art)
    form = None if dropped or "all" in questions else _common_form(list(by_split(tables).values()), questions, options)
    new: dict[str, list[Question]] = {}
    if form is None:
        new = _share_out(questions, images.root, options.seed, report)
        form = TableForm()
        paths = {split: folder / f"{split}.csv" for split in SPLITS if split in new}
        report.found.append(f"written anew, as UTF-8 CSV with names of pictures below image_root: {folder.name}/")
    else:
        paths = {split: table.path for split, table in by_split(tables).items()}
        for path in paths.values():
            read_table(path, images, form)  # as a training will; whatever is wrong with it is told
    blip2 = _blip2(options.blip2, report)
    start = Start(paths, form, images.root, blip2, art_encoder, report.found, report.assumed)
    write_start(options.output, start, folder, new)
    return report


_NO_ART_ENCODER = (
    "efficientnet.checkpoint: there is none at this path yet. Train one on WikiArt's styles (artkv art-encoder; "
    "docs/art_encoder.md), or take ImageNet's (hf download timm/efficientnet_b3.ra2_in1k model.safetensors --local-dir "
    "checkpoints/imagenet, and name that file), which never saw a label of a style: expect little of its prefix. Or "
    "train without: kv_modulation.enabled: false"
)


def _check_options(options: InitOptions, folder: Path) -> None:
    check_encoding(options.encoding, get_args(Encoding))
    if options.output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output {options.output}: is to be a config; give it a name that ends in .yaml")
    for path in (options.output, folder):
        if os.path.lexists(path):
            raise UserError(f"--output {options.output}: {path} is there already; give another name, or remove it")
        check_writable(path, f"--output {options.output}")
    _check_blip2(options.blip2)
    if options.art_encoder is not None:
        _check_art_encoder(options.art_encoder)


def _check_art_encoder(path: Path) -> None:
    """Raises `UserError` for what cannot be weights, by the first bytes."""
    what = "is a folder" if path.is_dir() else "no such file"
    if path.is_file():
        kind = kind_at(path)
        if kind in WEIGHTS:
            return
        what = f"is {kind or 'no file of weights'}"
    raise UserError(f"--art-encoder {printable(path)}: {what}; give a .pth or .safetensors, or leave it out")


def _check_blip2(given: str | None) -> None:
    """Raises `UserError` for what can be neither a hub id, nor a file of LAVIS, nor a folder of transformers."""
    if given is None:
        return
    place = f"--blip2 {printable(given)}"
    if not os.path.lexists(given):
        if not is_hub_id(given):
            raise UserError(
                f"{place}: no such folder, and no hub id; {did_you_mean(given)}give an id such as {_BLIP2}, or a folder"
            )
    elif os.path.isdir(given):
        check_is_there(Path(given) / "config.json", place, "give a folder of BLIP-2, or leave it out for the hub's")
    elif not given.endswith((".pth", ".pt")):
        raise UserError(f"{place}: is no folder; give a folder of BLIP-2, or leave it out for the hub's")


def _blip2(given: str | None, report: Report) -> str | Path:
    """The model of the config: a path where there is something, else a hub id, which nobody has asked the hub about."""
    if given is None:
        return _BLIP2
    if os.path.exists(given):
        return Path(given)
    report.assumed.append(f"--blip2 {printable(given)}: is no path here, so it is the hub's; artkv check looks it up")
    return given


def _tables_of_questions(
    options: InitOptions, seen: Survey, indices: Sequence[ImageIndex], report: Report
) -> list[Table]:
    """The tables that have the columns; `UserError` if there are none."""
    opened = {path: open_table(path, options.delimiter, options.encoding) for path in seen.tables}
    given = dict(options.columns)
    check_given([table.header for table in opened.values() if isinstance(table, Table)], given)
    tables, unused = [], {}
    for path, table in opened.items():
        if isinstance(table, str):
            unused[path] = table
            continue
        columns = _columns(table, given, indices)
        if all(role in columns for role in NEEDED):
            tables.append(table.with_columns(columns))
            _tell_columns(tables[-1], columns, given, report)
        else:
            unused[path] = why_no_questions(table.header, columns)
    report.unused.extend(f"{printable(path.name)}: {why}" for path, why in list(unused.items())[:_MOST_SHOWN])
    if not tables:
        place = printable(options.folder)
        if not unused:
            raise UserError(
                f"{place}: no CSV or JSON file below it{seen.told_of_others()}; give the folder of the questions, and "
                "--images for the pictures"
            )
        told = "\n".join(f"{printable(path)}: {why}" for path, why in list(unused.items())[:_MOST_SHOWN])
        if (why := _misleading_options(options, seen, indices)) is not None:
            raise UserError(f"{told}\n{place}: no table of questions there; {why}")
        # Of captions, and of what is no table, no header has another name.
        has_headers = any(isinstance(opened[path], Table) and why != CAPTIONS for path, why in unused.items())
        remedy = f"give {', '.join(OPTIONS.values())} where headers have other names" if has_headers else _TABLES
        raise UserError(f"{told}\n{place}: no table of questions there; {remedy}")
    _check_splits(tables, unused)
    return tables


_TABLES = (
    "put them into CSV with a header, image,question,answer, or into JSON with a list of one object for each, "
    '[{"image": ..., "question": ..., "answer": ...}, ...]'
)


def _check_splits(tables: Sequence[Table], unused: Mapping[Path, str]) -> None:
    """Raises `UserError` for a file that is no table, and is by its name and kind a split that no table is."""
    splits = {split_of(table.path) for table in tables}
    kinds = {table.items is not None for table in tables}
    for path, why in unused.items():
        split, is_like = split_of(path), (path.suffix.lower() == ".json") in kinds
        if split is not None and is_like and why != CAPTIONS and split not in splits and splits <= {*SPLITS}:
            raise UserError(
                f"{printable(path)}: {why}, and by its name it is the table of {split}, which no other is; correct it, "
                "or move it elsewhere to do without it"
            )


def _columns(table: Table, given: Mapping[str, str], indices: Sequence[ImageIndex]) -> dict[str, str]:
    sample = table.sample()
    shares = {name: max(share_found(index, cells) for index in indices) for name, cells in sample.items()}
    return find_columns(table.header, given, shares.__getitem__)


def _misleading_options(options: InitOptions, seen: Survey, indices: Sequence[ImageIndex]) -> str | None:
    """The options without which there is a table of questions, and that one; None where it is not for them."""
    ways: list[tuple[str, InitOptions]] = []
    if options.delimiter is not None:
        ways.append((f"--delimiter {options.delimiter}", replace(options, delimiter=None)))
    if options.encoding is not None:
        ways.append((f"--encoding {options.encoding}", replace(options, encoding=None)))
    for role, name in options.columns:
        others = tuple(pair for pair in options.columns if pair[0] != role)
        ways.append((f"{OPTIONS.get(role, '--type-column')} {printable(name)}", replace(options, columns=others)))
    if len(ways) > 1:
        every = replace(options, delimiter=None, encoding=None, columns=())
        ways.append((" and ".join(option for option, _ in ways), every))
    for option, without in ways:
        for path in seen.tables:
            table = open_table(path, without.delimiter, without.encoding)
            if isinstance(table, Table) and {*NEEDED} <= _columns(table, dict(without.columns), indices).keys():
                return f"without {option} {printable(path)} is one; leave that out, or correct it"
    return None


def _tell_columns(table: Table, columns: Mapping[str, str], given: Mapping[str, str], report: Report) -> None:
    form = table.form
    kind = "JSON" if table.items is not None else f"{form.delimiter}-separated, {form.encoding}"
    names = ", ".join(f"{role}: {name}" for role, name in columns.items())
    report.found.append(f"{table.path.name}, {kind}: {names}")
    for role, name in columns.items():
        others = others_like(table.header, role, name)
        if role not in given and others:
            also = ", ".join(quoted(other) for other in others if other not in columns.values())
            if also:
                report.assumed.append(f"{table.path.name}: {role} is {quoted(name)}, and not {also}")
    if form.encoding in ("latin-1", "cp1252") and not table.is_ascii:
        report.assumed.append(f"{table.path.name}: is no UTF-8, and was taken for {form.encoding}; look at its accents")


def _share(tables: Sequence[Table], images: ImageIndex) -> float:
    """How many of the tables' first names of pictures are found."""
    return share_found(images, [cell for table in tables for cell in table.sample()[str(table.form.name_of("image"))]])


def _read_all(
    tables: Mapping[str, Table], images: ImageIndex, options: InitOptions, report: Report
) -> tuple[dict[str, list[Question]], int]:
    """The questions of each table, and how many rows were left out; `UserError` for wrong ones that may not be."""
    questions, problems = {}, []
    for split, table in tables.items():
        questions[split], wrong = read_questions(table, images)
        problems += wrong
        if not questions[split] and options.leaves_out:
            raise UserError(
                f"{format_problems(wrong)}\n{printable(table.path)}: no row of it is right, and --leave-out-wrong "
                "would leave none; correct them"
            )
    if problems and not options.leaves_out:
        number = f"{len(problems):,} problem{'s' * (len(problems) > 1)}"
        raise UserError(
            f"{format_problems(problems)}\n{printable(options.folder)}: {number} with its questions; correct them, or "
            "add --leave-out-wrong for tables without these rows"
        )
    if problems:
        report.assumed.append(f"left out, as asked for: {_by_kind(problems)}")
    return questions, len(problems)


def _by_kind(problems: Sequence[Problem]) -> str:
    kinds: dict[str, int] = {}
    for problem in problems:
        kinds[kind_of(problem)] = kinds.get(kind_of(problem), 0) + 1
    return ", ".join(f"{count:,} x {kind}" for kind, count in kinds.items())


def _tell_pictures(
    pictures: Survey, images: ImageIndex, questions: Mapping[str, Sequence[Question]], report: Report
) -> None:
    asked = paintings(question for of_split in questions.values() for question in of_split)
    counts = ", ".join(
        f"{len(of_split):,} questions on {len(paintings(of_split)):,} paintings" + (f" ({split})" * (split != "all"))
        for split, of_split in questions.items()
    )
    report.found.append(counts)
    number = len(pictures.pictures)
    folders = f"{number:,} folder{'s' * (number > 1)}; image_root is {images.root.name}/"
    report.found.append(f"{pictures.num_pictures:,} pictures, of which the questions name {len(asked):,}, in {folders}")


def _common_form(
    tables: Sequence[Table], questions: Mapping[str, Sequence[Question]], options: InitOptions
) -> TableForm | None:
    """How all tables are written, where one config can say it; None where they have to be written anew."""
    if any(table.items is not None for table in tables):
        return None
    encodings = {table.form.encoding for table in tables if not table.is_ascii or table.form.encoding == "utf-16"}
    has_ids = all(have_own_ids(of_split) for of_split in questions.values())
    # Of what is not to be read nothing is said, unless it would be.
    columns = [
        {
            role: None if role == "question_id" and not has_ids else name
            for role, name in table.form.columns.items()
            if name is not None or role in table.header
        }
        for table in tables
    ]
    if len(encodings) > 1 or any(of_table != columns[0] for of_table in columns):
        return None
    delimiters = {table.form.delimiter for table in tables}
    delimiter = delimiters.pop() if len(delimiters) == 1 else "auto"
    encoding = encodings.pop() if encodings else "utf-8"
    form = TableForm(columns[0], "auto" if delimiter == "comma" else delimiter, encoding, section="dataset")
    return replace(form, delimiter=options.delimiter) if options.delimiter else form


def _share_out(
    questions: Mapping[str, list[Question]], root: Path, seed: int, report: Report
) -> dict[str, list[Question]]:
    """The questions of each split; those of a single table by their paintings."""
    if "all" not in questions:
        return dict(questions)
    split_of = share_out(paintings(questions["all"]), root, seed)
    shared = {split: [one for one in questions["all"] if split_of[one.picture] == split] for split in SPLITS}
    parts = ", ".join(f"{split} {len(paintings(of_split)):,}" for split, of_split in shared.items())
    report.assumed.append(
        f"a single table, so its paintings were shared out by seed {seed}, none into two splits: {parts}"
    )
    return shared
