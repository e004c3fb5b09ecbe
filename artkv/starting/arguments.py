"""The options of `artkv init`, and the record that they become; nothing here takes time to import."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from artkv.argument_values import file_path, some_path, some_text, whole_number
from artkv.errors import UserError
from artkv.reading import printable, remedy_for, whole_system


@dataclass(frozen=True)
class InitOptions:
    """What `artkv init` was asked for.

    folder: what is looked at. output: the config. images: where the pictures are, if not in `folder`. columns: names in
    the headers that were given, by what they are for. delimiter, encoding: None to find them. seed: settles who is in
    which split. art_encoder, blip2: weights, where they are at hand. leaves_out: whether wrong rows are left out.
    """

    folder: Path
    output: Path
    images: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    delimiter: str | None = None
    encoding: str | None = None
    seed: int = 1337
    art_encoder: Path | None = None
    blip2: str | None = None
    leaves_out: bool = False


_COLUMNS = {
    "image": "the picture's file name", "question": "the question", "answer": "the answer",
    "type": "the question's type; 'none' for no column",
}  # fmt: skip


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the options of `artkv init`."""
    verb.add_argument(
        "folder", type=some_path, metavar="FOLDER", help="with pictures and CSV or JSON files of questions"
    )
    verb.add_argument(
        "--output",
        type=file_path,
        default="my.yaml",
        metavar="FILE",
        help="the config; must not be there yet (default my.yaml)",
    )
    verb.add_argument("--images", type=some_path, metavar="FOLDER", help="where the pictures are, if not in FOLDER")
    for column, what in _COLUMNS.items():
        verb.add_argument(
            f"--{column}-column", type=some_text, metavar="NAME", help=f"the header of {what} (default: found)"
        )
    verb.add_argument(
        "--delimiter", choices=("comma", "semicolon", "tab", "pipe"), help="between two fields (default: found)"
    )
    verb.add_argument(
        "--encoding", type=some_text, metavar="NAME", help="of the files, such as latin-1 (default: found)"
    )
    verb.add_argument(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=1337,
        help="settles which paintings of a single file are trained on (default 1337)",
    )
    verb.add_argument(
        "--art-encoder", type=some_path, metavar="FILE", help="an EfficientNet trained on styles, if there is one"
    )
    verb.add_argument("--blip2", type=some_text, metavar="PATH", help="a folder of BLIP-2 (default: the hub's)")
    verb.add_argument(
        "--leave-out-wrong",
        action="store_true",
        help="write the questions anew without the rows that are wrong, such as those whose picture is missing",
    )


def check_folder(folder: Path, option: str) -> None:
    """Raises `UserError` unless the folder, which messages call `option`, can be listed."""
    try:
        os.scandir(folder).close()
    except (OSError, ValueError) as error:  # the latter for a NUL character
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{option} {printable(folder)}: cannot be listed ({reason}); {remedy_for(error, 'give a folder')}"
        ) from None
    if (what := whole_system(folder)) is not None:
        raise UserError(f"{option} {printable(folder)}: is {what}; give the folder of the pictures and questions")


def init_options(options: argparse.Namespace) -> InitOptions:
    """What parsed arguments ask for; `UserError` if the folder cannot be listed."""
    check_folder(Path(options.folder), "FOLDER")
    given = {
        "image": options.image_column, "question": options.question_column, "answer": options.answer_column,
        "question_type": options.type_column,
    }  # fmt: skip
    return InitOptions(
        folder=Path(options.folder),
        output=Path(options.output),
        images=None if options.images is None else Path(options.images),
        columns=tuple((role, name) for role, name in given.items() if name is not None),
        delimiter=options.delimiter,
        encoding=options.encoding,
        seed=options.seed,
        art_encoder=None if options.art_encoder is None else Path(options.art_encoder),
        blip2=options.blip2,
        leaves_out=options.leave_out_wrong,
    )
