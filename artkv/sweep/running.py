"""Does the runs of a sweep: trains, answers with all ablations, and leaves alone what is done."""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch

from artkv.config import Config, load_config
from artkv.config.deepspeed import load_deepspeed_config
from artkv.errors import Preempted, RunFailed, UserError
from artkv.evaluation.results import METRICS_FILE, evaluation_folder
from artkv.evaluation.run_roles import differing_settings
from artkv.launching import launch
from artkv.models.files.hub import local_folder
from artkv.run_folder.layout import BEST, best_checkpoint, checkpoints_newest_first
from artkv.run_folder.marker import MARKER
from artkv.run_folder.separation import check_is_apart, holds_run
from artkv.run_folder.status import STATE, read_if_readable
from artkv.sweep.plan import Sweep, SweepRun


def check_split(sweep: Sweep) -> None:
    """`UserError` if a run has no questions of the split to be answered: else that shows when it is trained."""
    for run in sweep.runs:
        if getattr(run.config.dataset, sweep.split) is None:
            raise UserError(
                f"sweep {sweep.path}, run {run.index} ({run.name}): split = {sweep.split}, and dataset.{sweep.split} "
                "is not set; give it a CSV file, or answer another split"
            )


def check_folders(sweep: Sweep) -> None:
    """`UserError` if a run's folder holds a training with other settings than the file has now, or is not its own.

    So it is if the sweep's folder is a run's. What the hub has of the models is fetched.
    """
    if holds_run(sweep.output_dir):
        raise UserError(f"sweep {sweep.path}: output_dir = {sweep.output_dir}: is the folder of a run; give another")
    for run in sweep.runs:
        try:
            _check_inputs(run.config)
            check_is_apart(run.config)
        except UserError as error:
            raise UserError(f"sweep {sweep.path}, run {run.index} ({run.name}): {error}") from None
        path = run.folder / "config.yaml"
        if not path.is_file():
            continue
        differing = list(differing_settings(load_config(path), run.config))
        if differing:
            raise UserError(
                f"sweep {sweep.path}, run {run.index} ({run.name}): {run.folder} was trained with other values of "
                f"{', '.join(differing[:5])}; give another output_dir, or remove that folder"
            )


def _check_inputs(config: Config) -> None:
    """`UserError` if a file or folder that the config names is not there: told now, and not hours later."""
    named = {f"dataset.{name}": getattr(config.dataset, name) for name in ("train", "val", "test", "image_root")}
    named |= {f"the checkpoint of {encoder.architecture}": encoder.checkpoint for encoder in config.used_encoders}
    for place, path in named.items():
        if path is not None and not path.exists():
            raise UserError(f"{place} = {path}: no such file or folder; give one that is there")
    load_deepspeed_config(config.training.deepspeed)
    if not config.model.is_lavis_file:
        _look_up(config.model.blip2, config.model.revision)


@cache  # most runs have the same one, and the hub is asked each time
def _look_up(blip2: str, revision: str | None) -> None:
    local_folder(blip2, "model.blip2", revision)


def describe(sweep: Sweep) -> list[str]:
    """A line for each run: its index, name and state."""
    states = {run.index: "done" if is_answered(sweep, run) else _state(run) or "-" for run in sweep.runs}
    width = max(map(len, states.values()))
    return [f"{run.index:4d}  {states[run.index]:{width}}  {run.name}" for run in sweep.runs]


def do_runs(sweep: Sweep, runs: Sequence[SweepRun], ranks: int | None) -> dict[int, str]:
    """Does runs one after another, and says how long is left; one that fails does not keep the others.

    ranks: processes of each; None for as many as there are GPUs, or one. Returns what went wrong, by index. Raises
    `Preempted` where a run, or this process, was asked to stop.
    """
    if ranks is None:
        ranks = max(1, torch.cuda.device_count())
    todo = [run for run in runs if not is_answered(sweep, run)]
    failed: dict[int, str] = {}
    began = time.monotonic()
    for place, run in enumerate(todo):
        left = (
            timedelta(seconds=round((time.monotonic() - began) / place * (len(todo) - place))) if place else "unknown"
        )
        print(f"run {run.index} ({run.name}): {place + 1} of {len(todo)} to do, time left {left}", flush=True)
        try:
            do_run(sweep, run, ranks)
        except RunFailed as error:
            failed[run.index] = str(error)
    return failed


def do_run(sweep: Sweep, run: SweepRun, ranks: int) -> None:
    """Trains a run from where it is to its end, and answers the split's questions; nothing where both are done.

    Raises `RunFailed` if either ended with an error; the messages are above, from the processes that failed.
    """
    if not is_trained(run):
        _launch(run, "train", ranks, *_config(sweep, run), "--resume", "auto")
    if not is_answered(sweep, run):
        _launch(run, "evaluate", ranks, "--checkpoint", str(_best(run)), "--split", sweep.split, "--all-ablations")


def is_trained(run: SweepRun) -> bool:
    """Whether the run is at its end."""
    return _state(run) == "finished"


def is_answered(sweep: Sweep, run: SweepRun) -> bool:
    """Whether the best checkpoint's answers are there, with the last of the ablations."""
    if not is_trained(run):
        return False
    wanted = best_checkpoint(run.folder) or next(iter(checkpoints_newest_first(run.folder)), None)
    answered = [_answered_checkpoint(sweep, run, name) for name in ("on", "on-blank")]
    return answered == [wanted, wanted]


def _state(run: SweepRun) -> str | None:
    state: str | None = (read_if_readable(run.folder / STATE) or {}).get("state")
    return state


def _answered_checkpoint(sweep: Sweep, run: SweepRun, ablation: str) -> str:
    metrics = read_if_readable(evaluation_folder(run.folder, sweep.split, ablation) / METRICS_FILE) or {}
    return Path(metrics.get("checkpoint", "")).name


def _launch(run: SweepRun, verb: str, ranks: int, *options: str) -> None:
    stop, before = None, read_if_readable(run.folder / MARKER)
    try:
        code = launch(verb, ranks, *options)
        if code == 0:
            return
    except Preempted as error:
        stop = error
    # Launchers have exit codes of their own: the marker tells, where the training came to write it.
    marker = read_if_readable(run.folder / MARKER) if verb == "train" else None
    if marker == before:  # of an earlier start, which one that fails early has not removed
        marker = None
    place = f"in run {run.index} ({run.name})"
    if marker:
        raise Preempted(int(marker["step"]), f"{marker['reason']}, {place},")
    if stop is not None:
        raise Preempted(None, f"{stop.reason}, {place}, during {verb}")
    raise RunFailed(f"{verb} ended with exit code {code}; its messages are above")


def _config(sweep: Sweep, run: SweepRun) -> list[str]:
    return ["--config", str(sweep.config_path), *(f for one in run.overrides for f in ("--set", one))]


def _best(run: SweepRun) -> Path:
    """The best checkpoint, or the run's folder, which means the newest, where no validation chose one."""
    return run.folder / BEST if best_checkpoint(run.folder) is not None else run.folder
