"""Whose world a folder holds; quick to import."""

import json
from pathlib import Path

from artkv.errors import UserError
from artkv.reading import read_object

# A folder made by another version of this code is not taken for a finished one. Raise it with each change
# of what is made.
_FORMAT_VERSION = 3


def claim(folder: Path, seed: int, kind: str | None = None) -> None:
    """Writes down whose world this folder is, or checks it. kind: of world, None for that of styles."""
    wanted = {"seed": seed, "format_version": _FORMAT_VERSION} | ({"kind": kind} if kind else {})
    label = folder / "world.json"
    if label.exists():
        found = read_object(label, "delete the folder or name another one")
        if found != wanted:
            raise UserError(
                f"{folder}: holds the embedded world of {found}, wanted is that of {wanted}; "
                "delete the folder or name another one"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "world.json.partial"
    partial.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    partial.replace(label)
