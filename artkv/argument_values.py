"""What an option of the command line takes; wrong values are wrong usage."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from artkv.errors import UserError
from artkv.files import check_writable
from artkv.reading import printable


def whole_number(least: int, most: int = 10**6) -> Callable[[str], int]:
    """A whole number within bounds, in plain digits."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r:.80} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def some_text(text: str) -> str:
    """A text that is not empty, without what no path can hold."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is empty, or holds a NUL")
    return text


def some_path(text: str) -> str:
    """A path, with a user's folder for `~`, which shells leave as it is in --option=~/x."""
    expanded = os.path.expanduser(some_text(text))
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text!r:.80}: no home folder is known for {text.split('/')[0]!r:.80}")
    return os.path.abspath(expanded) if text.startswith("./~") else expanded


def file_path(text: str) -> str:
    """The path of a file that is to be written: none that ends in a slash, as a folder's may."""
    try:
        check_names_file(some_path(text), "")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return some_path(text)


def check_names_file(path: str, option: str) -> None:
    """Raises `UserError` for a path that names a folder; its slash would be gone once the path is a `Path`.

    option: what gave it, for the message.
    """
    if path.endswith("/"):
        raise UserError(f"{f'{option} {printable(path)}'.strip():.300}: names a folder; give the name of a file")


def check_export_output(path: str, format_name: str) -> None:
    """Raises `UserError` for a file's name where the format is a folder, and a folder's where it is a file."""
    if format_name != "transformers":
        check_names_file(path, "--output")
    elif path.endswith(".safetensors"):
        what = "--format transformers writes a folder; give a folder's name, or another --format"
        raise UserError(f"--output {printable(path):.300}: names a file, and {what}")


def check_plan_file(path: str | None) -> None:
    """Raises `UserError` unless `artkv plan --write` can put its choice there; None: no file was named."""
    if path is None:
        raise UserError("--write: names no file, and --config is not given; give one of them")
    if not os.path.exists(path):
        raise UserError(f"--write {printable(path)}: no such file; give an existing YAML file, to put the choice into")
    check_writable(Path(path), f"--write {printable(path)}")

    from artkv.config.editing import check_is_config

    check_is_config(Path(path), "--write")


def png_path(text: str) -> str:
    """The path of a PNG."""
    text = file_path(text)
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text:.200}: would hold a PNG; give it a name that ends in .png")
    return text


def some_prefix(text: str) -> tuple[str, str | None]:
    """Of `--prefix`: on, off or shuffled, and for the latter two the art encoder's name behind a colon, or None."""
    prefix, colon, encoder = text.partition(":")
    if prefix not in ("on", "off", "shuffled") or (colon and (not encoder.strip() or prefix == "on")):
        raise argparse.ArgumentTypeError(
            f"{text!r:.80} is none of on, off and shuffled, nor off:NAME or shuffled:NAME of an art encoder"
        )
    return prefix, encoder or None
