"""`artkv ask`: what its arguments may be, and its answer."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from artkv import shell
from artkv.errors import UserError
from artkv.failures import for_terminal
from artkv.files import check_writable
from artkv.given_checkpoints import open_given
from artkv.heavy_imports import heavy_imports
from artkv.reading import exists, is_address, printable


def check_picture(given: str, question: str) -> None:
    """Raises `UserError`, with what may have been meant, if there is nothing at the path that was given as IMAGE.

    question: what was given as QUESTION.
    """
    place = f"IMAGE {printable(given)}"
    if given == "-":
        raise UserError(f"{place}: standard input is not read; save the picture as a file, and give its path")
    if is_address(given):
        raise UserError(f"{place}: is an address, and none is fetched; save the picture as a file, and give its path")
    if os.path.isdir(given):
        raise UserError(f"{place}: is a folder; give the path of one picture in it")
    try:
        if exists(Path(given)) or _is_in_file(Path(given)):
            return
    except OSError:  # as whoever opens it tells
        return
    if _exists(question):
        raise UserError(f"{place}: no such file, while QUESTION {printable(question)} is one; give IMAGE first")
    if re.search(r"[*?\[]", given):
        raise UserError(f"{place}: no such file, and a pattern is not looked for; give the path of one picture")
    raise UserError(f"{place}: no such file; give the path of a picture, then the question in quotes")


def ask(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Answers one question about one picture; the answer goes to `say`, and what else there is to tell to stderr."""
    checkpoint, config = open_given(options, options.checkpoint)
    check_picture(options.picture, options.question)
    drawing = None if options.attention is None else Path(options.attention)
    if drawing is not None:
        check_writable(drawing, f"--attention {drawing}")

    with heavy_imports():
        from artkv.api import check_drawing, draw_attention, load_model

    if drawing is not None:
        check_drawing(drawing)
    session = load_model(config, checkpoint)
    (answer,) = session.answers(options.picture, [options.question], options.prefix == "on")
    say(answer.text)
    per_token = f"{answer.token_probability:.3f} a token"
    print(f"probability {answer.probability:.3f}, {per_token}", file=sys.stderr)  # the answer stands alone, for a pipe
    if drawing is not None:
        draw_attention(session, options.picture, options.question, answer.text, drawing)
        print(for_terminal(f"attention: {shell.seen_by_caller(drawing)}"), file=sys.stderr)


def _exists(text: str) -> bool:
    """Whether a text is the path of something; False where that cannot be known, as of one too long for a name."""
    try:
        return exists(Path(text))
    except (OSError, ValueError):
        return False


def _is_in_file(path: Path) -> bool:
    """Whether a path goes through a file, as that of a picture in a shard does."""
    return any(parent.is_file() for parent in path.parents)
