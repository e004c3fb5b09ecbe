"""Names in a run's folder: `checkpoints/step_00000500`, `checkpoints/latest`, the link `best`, `report.html`.

artkv changes and removes what has one of its names in full and is of the kind that it makes, and nothing else: all
else in the folder is its user's.
"""

import os
import re
from pathlib import Path

from artkv.errors import UserError
from artkv.files import reason_of
from artkv.reading import remedy_for

CHECKPOINTS = "checkpoints"
LATEST = "latest"
BEST = "best"
REPORT = "report.html"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOGS = "logs"

_CHECKPOINT = re.compile(r"step_([0-9]{8,250})")


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder, such as step_00000500."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's folder is named after; None for any other name, such as step_00000500_copy."""
    match = _CHECKPOINT.fullmatch(name)
    step = None if match is None else int(match[1])
    return step if step is not None and checkpoint_name(step) == name else None


def checkpoints_newest_first(run_dir: Path) -> list[str]:
    """Names of the checkpoints in `run_dir`, by step; `UserError` if that cannot be seen.

    `latest` is for people and other programs: a checkpoint is whole as soon as it has its name, and one that
    its run did not live to write into `latest` counts too.
    """
    folder = run_dir / CHECKPOINTS
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if step_of(entry.name) is not None and entry.is_dir()]
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(folder):
            return []
        link = f"is a link to {os.readlink(folder)}, which " if folder.is_symlink() else ""
        remedy = remedy_for(error, "mount its disk")
        raise UserError(
            f"{folder}: {link}cannot be listed ({reason_of(error)}); {remedy}: what it holds is not known"
        ) from None
    return sorted(names, key=lambda name: step_of(name) or 0, reverse=True)


def best_checkpoint(run_dir: Path) -> str | None:
    """The name of the checkpoint that `run_dir/best` points at, None while there is none."""
    if not is_own_best(run_dir):
        return None
    name = (run_dir / BEST).readlink().name
    return name if (run_dir / CHECKPOINTS / name).is_dir() else None


def is_own_best(run_dir: Path) -> bool:
    """Whether `run_dir/best` is a link to one of the run's checkpoints, there or not, as artkv makes it."""
    link = run_dir / BEST
    if not link.is_symlink():
        return False
    target = link.readlink()
    return step_of(target.name) is not None and (run_dir / target).parent.resolve() == (run_dir / CHECKPOINTS).resolve()
