"""Whether a new run's folder is its own: no part of what the run reads, and without files of somebody else's."""

import os
from collections.abc import Iterator
from pathlib import Path

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import reason_of
from artkv.reading import printable
from artkv.run_folder.layout import CHECKPOINTS, METRICS
from artkv.run_folder.state_record import STATE

_REMEDY = "give it a folder of its own"
# What a job or its user may have put there before the first start: what is printed, notes, settings and scripts.
BESIDE = (".out", ".err", ".log", ".txt", ".md", ".yaml", ".yml", ".json", ".sh", ".sbatch")
# Hidden files, and the hosts of a job, as launch/train_deepspeed.sbatch writes them.
_JOBS = (".", "hostfile.")
# What starts of a run leave that came to nothing, or other commands make.
_OWN = ("restarts.jsonl", "run.lock", "config.yaml", "environment.json", "preempted.json")


def check_is_apart(config: Config) -> None:
    """Raises `UserError` where a run that is to be new would mix its files with what it reads, or with anything else.

    A run that is there goes on where it is.
    """
    run_dir = config.run.output_dir
    if any(os.path.lexists(run_dir / name) for name in (CHECKPOINTS, METRICS, STATE)):
        return
    here = Path(os.path.realpath(run_dir))
    for setting, folder in _read_folders(config):
        other = Path(os.path.realpath(folder))
        # Around it is another matter: a run writes into no folder beside its own, and the quickstart's has all in it.
        if here == other or other in here.parents:
            how = "is" if here == other else "is inside"
            raise UserError(
                f"run.output_dir = {printable(run_dir)}: {how} {setting} = {printable(folder)}, and the run's files "
                f"would be mixed with those; {_REMEDY}"
            )
    try:
        entries = sorted(entry.name for entry in os.scandir(run_dir) if not entry.is_dir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"run.output_dir = {printable(run_dir)}: cannot be listed ({reason_of(error)}); {_REMEDY}"
        ) from None
    foreign = [name for name in entries if not (name.startswith(_JOBS) or name in _OWN or name.endswith(BESIDE))]
    if foreign:
        shown = ", ".join(map(printable, foreign[:3])) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise UserError(
            f"run.output_dir = {printable(run_dir)}: holds {shown}, and no run, whose files would be mixed with those; "
            f"{_REMEDY}"
        )


def _read_folders(config: Config) -> Iterator[tuple[str, Path]]:
    """The folders that a run reads, by their settings."""
    cache = config.frozen.feature_cache
    for setting, value in (
        ("model.blip2", config.model.blip2),
        ("model.opt", config.model.opt),
        ("dataset.image_root", config.dataset.image_root),
        ("frozen.feature_cache", None if cache == "auto" else cache),
    ):
        # A name of the hub is no path; a folder of features may still have to be made.
        if value is not None and (os.path.isdir(value) or setting == "frozen.feature_cache"):
            yield setting, Path(value)
