"""`artkv launch`: its options, and what it does with them."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from artkv.argument_values import some_path
from artkv.errors import UserError
from artkv.failures import DONE, for_terminal
from artkv.files import check_writable, told
from artkv.launch_files.kinds import KINDS


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the options of `artkv launch`."""
    verb.formatter_class = argparse.RawTextHelpFormatter
    kinds = "\n".join(f"{name}: {kind.summary}" for name, kind in KINDS.items())
    verb.add_argument("kind", choices=KINDS, metavar="KIND", help=kinds)
    verb.add_argument(
        "--output",
        type=some_path,
        metavar="FILE",
        help="the file to write, which must not be there yet\n(default: here, under its own name)",
    )


def launch(options: argparse.Namespace) -> int:
    """Writes a launch file, and says what to do with it."""
    kind = KINDS[options.kind]
    output = Path(options.output or kind.default_name)
    place = f"--output {output}"
    if not str(output).isprintable():
        raise UserError(
            f"--output {str(output)!r:.200}: has characters that no line of a script can hold; give another name"
        )
    check_writable(output, place)
    if os.path.lexists(output):
        raise UserError(f"{output}: is there already; give another --output, or move it away")

    from artkv.launch_files.rendering import render

    text = render(kind, output, Path(sys.prefix))
    with told(place, "give another place"):
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("x", encoding="utf-8") as file:  # never over what came there meanwhile
            file.write(text)
        if text.startswith("#!"):
            mode = output.stat().st_mode
            output.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    start = kind.start.replace("FILE", shlex.quote(str(output)))
    print(for_terminal(f"{output}: written; edit its first lines{', then: ' if start else ''}{start}"))
    return DONE
