"""Whether a new run's folder is its own: no part of what the run reads, and without files of somebody else's."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from artkv.config import Config
from artkv.errors import UserError
from artkv.files import reason_of
from artkv.reading import printable, remedy_for
from artkv.run_folder.layout import CHECKPOINTS, METRICS
from artkv.run_folder.state_record import STATE

_REMEDY = "give it a folder of its own"
# What a job or its user may have put there before the first start: what is printed, notes, settings and scripts.
BESIDE = (".out", ".err", ".log", ".txt", ".md", ".yaml", ".yml", ".json", ".sh", ".sbatch")
# Hidden files, and the hosts of a job, as launch/train_deepspeed.sbatch writes them.
_JOBS = (".", "hostfile.")
# Folders of a job's output and of trackers, and what a disk has at its top.
_JOBS_FOLDERS = ("logs", "log", "slurm", "wandb", "eval", "lost+found")
# Entries below a folder that are looked at: a job's files are few.
_MOST_ENTRIES = 1000
# What starts of a run leave that came to nothing, or other commands make.
_OWN = ("restarts.jsonl", "run.lock", "config.yaml", "environment.json", "preempted.json")


def check_is_apart(config: Config) -> None:
    """Raises `UserError` where a run that is to be new would mix its files with what it reads, or with anything else.

    A run that is there goes on where it is.
    """
    run_dir = config.run.output_dir
    if holds_run(run_dir):
        return
    for setting, folder in _read_folders(config):
        # Around it is another matter: a run writes into no folder beside its own, and the quickstart's has all in it.
        if (how := how_within(run_dir, folder)) is not None:
            raise UserError(
                f"run.output_dir = {printable(run_dir)}: {how} {setting} = {printable(folder)}, and the run's files "
                f"would be mixed with those; {_REMEDY}"
            )
    try:
        foreign = sorted(_foreign_files(run_dir)) + sorted(_foreign_folders(run_dir, _read_paths(config)))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"run.output_dir = {printable(run_dir)}: cannot be listed ({reason_of(error)}); "
            f"{remedy_for(error, _REMEDY)}"
        ) from None
    if foreign:
        shown = ", ".join(map(printable, foreign[:3])) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise UserError(
            f"run.output_dir = {printable(run_dir)}: holds {shown}, and no run, whose files would be mixed with those; "
            f"{_REMEDY}"
        )


def how_within(folder: Path, other: Path) -> str | None:
    """`is` or `is inside`, where a folder is the other one or lies in it, links followed; None elsewhere."""
    here, there = Path(os.path.realpath(folder)), Path(os.path.realpath(other))
    return "is" if here == there else "is inside" if there in here.parents else None


def holds_run(folder: Path) -> bool:
    """Whether a run has begun to write into the folder."""
    return any(os.path.lexists(folder / name) for name in (CHECKPOINTS, METRICS, STATE))


def _foreign_files(folder: Path) -> Iterator[str]:
    """Names of files in a folder that neither a job, nor its user for it, nor a start of a run has put there."""
    for entry in os.scandir(folder):
        is_known = entry.name.startswith(_JOBS) or entry.name in _OWN or entry.name.endswith(BESIDE)
        if not entry.is_dir() and not is_known:
            yield entry.name


def _foreign_folders(run_dir: Path, read: Iterable[Path]) -> Iterator[str]:
    """Names of folders that are none of a job's, hold nothing that the run reads, and hold files of somebody else's.

    The quickstart's run has all that it reads, and its control, in folders of its own.
    """
    leading = {parent for path in read for parent in (path, *path.parents)}
    for entry in os.scandir(run_dir):
        if not entry.is_dir() or entry.name.startswith(".") or entry.name in _JOBS_FOLDERS:
            continue
        folder = Path(entry.path)
        if not (holds_run(folder) or Path(os.path.realpath(folder)) in leading or _is_a_jobs(folder)):
            yield f"{entry.name}/"


def _is_a_jobs(folder: Path) -> bool:
    """Whether all that lies below a folder, at any depth, may be a job's; not where nobody may look."""
    num_entries = 0

    def fail(error: OSError) -> None:
        raise error

    try:
        for above, folders, files in os.walk(folder, onerror=fail):
            num_entries += len(folders) + len(files)
            if num_entries > _MOST_ENTRIES or any(_foreign_files(Path(above))):
                return False
    except OSError:
        return False
    return True


def _read_paths(config: Config) -> Iterator[Path]:
    """The files and folders that a run reads, without links."""
    dataset, model = config.dataset, config.model
    paths = [path for _, path in _read_folders(config)]
    names = (model.blip2, model.opt, config.training.deepspeed)
    paths += [Path(name) for name in names if name is not None and os.path.lexists(name)]
    paths += filter(None, (dataset.train, dataset.val, dataset.test, model.vit))
    paths += filter(None, (encoder.checkpoint for encoder in config.encoders))
    return (Path(os.path.realpath(path)) for path in paths)


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
