"""The checkpoints that options of the command line mean."""

import argparse
from typing import TYPE_CHECKING

from artkv import shell
from artkv.errors import UserError
from artkv.failures import rank, tell
from artkv.reading import printable

if TYPE_CHECKING:  # a verb that opens none need not wait for them
    from artkv.config import Config
    from artkv.run_folder.checkpoint import Checkpoint


def open_controls(
    options: argparse.Namespace, checkpoint: "Checkpoint", config: "Config"
) -> "dict[str, tuple[Checkpoint, Config]]":
    """The checkpoints that --control means, and their configs with --set, by what their columns are called.

    checkpoint, config: of the run that they are compared with. `UserError` for one that is no control of it.
    """
    if options.all_ablations and (options.prefix != ("on", None) or options.image != "on"):
        given = ":".join(filter(None, options.prefix)) if options.image == "on" else options.image
        option = "--prefix" if options.image == "on" else "--image"
        raise UserError(f"{option} {given}: is one of what --all-ablations answers with; leave out one of the two")
    if options.control and not options.all_ablations:
        raise UserError("--control: is compared with all ablations; add --all-ablations")

    from artkv.evaluation.run_roles import CONTROL, Run, lacked_encoders, roles_of, without_name

    runs, controls = [Run(checkpoint.run_dir, config)], {}
    for given in options.control:
        control, its_config = open_given(options, given)
        lacked = lacked_encoders(config, its_config)
        if not lacked and (its_config.kv_modulation.enabled or not config.kv_modulation.enabled):
            raise UserError(_no_control(options, given, config, its_config))
        name = without_name(lacked) if lacked else CONTROL
        controls[name if name not in controls else f"{name}, seed {its_config.training.seed}"] = (control, its_config)
        runs.append(Run(control.run_dir, its_config))
    roles_of(runs)  # two of one seed are refused before hours of answering
    return controls


def _no_control(options: argparse.Namespace, given: str, config: "Config", its_config: "Config") -> str:
    is_first = its_config.kv_modulation.enabled
    if is_first and len(config.used_encoders) > 1:
        names = ", ".join(encoder.source_name for encoder in config.used_encoders)
        return (
            f"--control {given}: was trained with a prefix, and not as {options.checkpoint} with some of its encoders "
            f"({names}) left out and all else but the seed alike; give a run of that kind, or one without a prefix"
        )
    which, path = ("--control", given) if is_first else ("--checkpoint", options.checkpoint)
    was = "with" if is_first else "without"
    return f"{which} {path}: was trained {was} a prefix; give --control a run without one, and --checkpoint one with it"


def open_given(options: argparse.Namespace, given: str) -> "tuple[Checkpoint, Config]":
    """The checkpoint that an option means, and its config with --set; says on stderr which one it is.

    `UserError` for a setting that would put its answers elsewhere than beside their checkpoint.
    """
    from artkv.config import override_config
    from artkv.run_folder.layout import BEST, best_checkpoint, checkpoints_newest_first
    from artkv.sharing.fetching import open_shared

    checkpoint, sets = open_shared(given), list(options.set)
    if any(setting.startswith("model.blip2=") for setting in sets):
        sets.insert(0, "model.revision=null")  # of the one that is replaced
    config = override_config(checkpoint.config, sets)
    output_dir = config.run.output_dir
    if output_dir != checkpoint.config.run.output_dir and output_dir.resolve() != checkpoint.run_dir.resolve():
        where = f"--set run.output_dir={printable(output_dir)}"
        what = f"is where a run trains, and {printable(given)} stays where it is"
        raise UserError(f"{where}: {what}; leave it out", on_all_ranks=True)
    if rank() == "0" and checkpoint.hub_id is not None:
        tell(f"checkpoint {checkpoint.hub_id}")
    elif rank() == "0":
        name, run_dir = checkpoint.path.name, checkpoint.run_dir
        notes = ["newest"] if checkpoints_newest_first(run_dir)[:1] == [name] else []
        best = best_checkpoint(run_dir)
        if best is not None:
            notes.append("best" if best == name else f"{shell.seen_by_caller(run_dir / BEST)} is {best}")
        shown = f" ({'; '.join(notes)})" if notes else ""
        tell(f"checkpoint {shell.seen_by_caller(checkpoint.path)}{shown}")
    return checkpoint, config
