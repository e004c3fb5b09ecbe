"""What is wrong with a CSV file, line by line, and how much of it is told."""

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artkv.reading import printable

MOST_SHOWN = 50
# Texts from a cell, in a message: more would hide what is said of them.
MOST_CHARACTERS = 200
_MOST_KINDS = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a CSV file, at a physical line (the first line is 1)."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{printable(self.path)}:{self.line}: {self.message}"


def quoted(text: str) -> str:
    """A cell in a message: as a literal, in which nothing acts on a terminal, and not longer than a few lines."""
    return repr(text) if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]!r}... ({len(text):,} characters)"


def format_problems(problems: Sequence[Problem | str], keeps_all: bool = True) -> str:
    """The problems one a line: the first `MOST_SHOWN`, and of the others how many there are of each kind.

    Where there are others, all of them go into a file of a new folder that the user alone can read, which is named.
    keeps_all: whether there is to be such a file.
    """
    lines = [str(problem) for problem in problems]
    hidden = lines[MOST_SHOWN:]
    if not hidden:
        return "\n".join(lines)
    counts = Counter(kind_of(problem) for problem in problems[MOST_SHOWN:]).most_common()
    kinds = ", ".join(f"{count:,} x {kind}" for kind, count in counts[:_MOST_KINDS])
    others = f", {len(counts) - _MOST_KINDS} other kinds" if len(counts) > _MOST_KINDS else ""
    where = _write_all(lines) if keeps_all else ""
    return "\n".join([*lines[:MOST_SHOWN], f"and {len(hidden):,} more: {kinds}{others}{where}"])


def kind_of(problem: Problem | str) -> str:
    """A problem without what is its own: place, names, numbers and remedy; alike for all of its kind."""
    message = problem.message if isinstance(problem, Problem) else problem
    message = re.sub(r"^[^:]*:[0-9]+: ", "", message)
    message = re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "...", message)
    message = re.sub(r"\(.*\)", "", message)
    message = re.sub(r"\bpicture .*: ", "picture: ", message.split(";")[0])
    message = re.sub(r"(?<![\w-])(0x[0-9A-F]{2}|[0-9][0-9,]*)\b", "N", message)
    return re.sub(r"\s+", " ", message).strip()[:MOST_CHARACTERS]


def _write_all(lines: Sequence[str]) -> str:
    try:
        path = Path(tempfile.mkdtemp(prefix="artkv-problems-")) / "problems.txt"
        path.write_text("\n".join([*lines, ""]), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return f"; no list of all could be written ({error.strerror})"
    return f"; all {len(lines):,} are listed in {path}"
