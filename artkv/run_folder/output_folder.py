"""Whether a run can write into its folder, looked at before it does: the disk, and what has a name that it needs."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from artkv.config import load_config
from artkv.errors import UserError
from artkv.files import check_folder_writable, reason_of, remedy_for_writing
from artkv.reading import remedy_for
from artkv.run_folder.layout import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    LATEST,
    LOGS,
    METRICS,
    step_of,
)
from artkv.run_folder.marker import MARKER
from artkv.run_folder.run_lock import LOCK
from artkv.run_folder.state_record import STATE, WITHOUT_SAVED_STEP, StateRecord, read_state_record
from artkv.run_folder.status import read_metrics

_REMEDY = "move it elsewhere, or give another folder"


def check_output_folder(output_dir: Path) -> None:
    """Raises `UserError` unless a run can write into `output_dir`, or make it.

    Nothing that artkv has not made may have a name that a run writes: it would end the run, or be lost.
    """
    place = f"run.output_dir = {output_dir}"
    try:
        check_folder_writable(output_dir, place)
        for name in (STATE, LOCK, MARKER, CONFIG, ENVIRONMENT, METRICS):
            _check_file(output_dir / name, place, may_be_link=name == METRICS)
        _check_can_be_added_to(output_dir / METRICS, place)
        _check_file(output_dir / CHECKPOINTS / LATEST, place, may_be_link=True)
        for name in (CHECKPOINTS, LOGS):
            _check_folder(output_dir / name, place)
    except OSError as error:
        raise UserError(
            f"{place}: {error.filename or output_dir} cannot be read ({reason_of(error)}); "
            f"{remedy_for(error, 'give another folder')}"
        ) from None


def check_no_file_is_in_the_way(run_dir: Path, step: int) -> None:
    """Raises `UserError` if a later checkpoint than that of `step` could not get its name for what has it.

    The run's own later checkpoints are folders, and set aside.
    """
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        own = step_of(entry.name)
        if own is not None and own > step and not entry.is_dir():
            raise UserError(
                f"run.output_dir = {run_dir}: {folder / entry.name} is no folder, and has the name of a checkpoint to "
                f"come; {_REMEDY}"
            )


def _check_file(path: Path, place: str, may_be_link: bool) -> None:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) and may_be_link:
            mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        return  # that is told of what is above it
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise UserError(f"{place}: {path} is {kind}, where a run writes a file; {_REMEDY}")


def _check_can_be_added_to(path: Path, place: str) -> None:
    """All other files are replaced, for which the folder's rights count."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        remedy = remedy_for_writing(error, path, "give another folder")
        raise UserError(f"{place}: {path} cannot be written ({reason_of(error)}); {remedy}") from None


def _check_folder(path: Path, place: str) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{place}: {path} is a link to {os.readlink(path)}, which is not there; mount its disk, or remove the link"
        )
    if not path.is_dir():
        raise UserError(f"{place}: {path} is no folder, where a run makes one; {_REMEDY}")
    check_folder_writable(path, place)


def check_is_new(run_dir: Path, checkpoint_every: int) -> None:
    """Raises `UserError` unless a folder without checkpoints may get a run's first step.

    A run that was killed before its first checkpoint is begun again. But where its records say that there was one, its
    checkpoints are not lost but away, as with a disk that is not mounted, and a new start would overwrite the rest.

    checkpoint_every: of the run that is to start, where the folder's own config is not to be had.
    """
    record = read_state_record(run_dir)
    if record is None:
        own = [name for name in (CONFIG, ENVIRONMENT) if os.path.lexists(run_dir / name)]
        if own and not os.path.lexists(run_dir / METRICS):
            raise UserError(
                f"run.output_dir = {run_dir}: holds {' and '.join(own)}, which a run would overwrite, and no run; "
                f"{_REMEDY}"
            )
    saved = _sign_of_checkpoints(run_dir, record, checkpoint_every)
    if saved is not None:
        raise UserError(
            f"run.output_dir = {run_dir}: {saved}, and there is no checkpoint in {run_dir / CHECKPOINTS}; mount its "
            f"disk, put the checkpoints back, or give another folder; to start anew here, remove {STATE} and {METRICS}"
        )


def _sign_of_checkpoints(run_dir: Path, record: StateRecord | None, checkpoint_every: int) -> str | None:
    """What says that a run has had checkpoints in this folder; None where nothing does."""
    if record is not None and record.saved_step is not None:
        return f"{STATE} says that step {record.saved_step} was saved"
    if record is not None and record.format_version > WITHOUT_SAVED_STEP:
        return None
    # Written before that was noted. A step is logged before it is saved.
    training, validations = read_metrics(run_dir / METRICS)
    with suppress(UserError):
        checkpoint_every = load_config(run_dir / CONFIG).run.checkpoint_every
    if any(one["step"] > 0 for one in validations) or any(one["step"] > checkpoint_every for one in training):
        step = max(one["step"] for one in [*training, *validations])
        return f"{METRICS} goes on to step {step}, with a checkpoint each {checkpoint_every} steps"
    return None
