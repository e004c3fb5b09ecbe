"""What an option of the command line takes; wrong values are wrong usage."""

import argparse
import os
import re
from collections.abc import Callable


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


def png_path(text: str) -> str:
    """The path of a PNG."""
    text = some_path(text)
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
