"""The checkpoints that options of the command line mean."""

import argparse
from typing import TYPE_CHECKING

from artkv import shell
from artkv.errors import UserError
from artkv.failures import rank, tell

if TYPE_CHECKING:  # a verb that opens none need not wait for them
    from artkv.config import Config
    from artkv.run_folder.checkpoint import Checkpoint


def open_control(options: argparse.Namespace, config: "Config") -> "tuple[Checkpoint, Config]":
    """The checkpoint that --control means, and its config with --set; `UserError` if it is none."""
    if not options.all_ablations:
        raise UserError("--control: is compared with all ablations; add --all-ablations")
    control, its_config = open_given(options, options.control)
    if its_config.kv_modulation.enabled or not config.kv_modulation.enabled:
        is_first = its_config.kv_modulation.enabled
        which, path = ("--control", options.control) if is_first else ("--checkpoint", options.checkpoint)
        was = "with" if is_first else "without"
        raise UserError(
            f"{which} {path}: was trained {was} a prefix; give --control a run without one, and "
            "--checkpoint one with it"
        )
    return control, its_config


def open_given(options: argparse.Namespace, given: str) -> "tuple[Checkpoint, Config]":
    """The checkpoint that an option means, and its config with --set; says on stderr which one it is."""
    from artkv.config import override_config
    from artkv.run_folder.layout import BEST, best_checkpoint, checkpoints_newest_first
    from artkv.sharing.fetching import open_shared

    checkpoint, sets = open_shared(given), list(options.set)
    if any(setting.startswith("model.blip2=") for setting in sets):
        sets.insert(0, "model.revision=null")  # of the one that is replaced
    config = override_config(checkpoint.config, sets)
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
