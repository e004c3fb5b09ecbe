"""Checkpoints on disk: whole or absent, verified when read, a few safetensors files.

What trains is small, so a checkpoint holds gathered tensors by backend-neutral name and the number of
ranks may change between save and resume. When to save is the loop's business; this file only writes
and reads.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from artkv.config import Config, dump_config
from artkv.errors import UserError
from artkv.files import file_sha256, save_tensors, write_whole
from artkv.run_folder.adapter_file import KV_PREFIX, adapter_config, adapter_tensors, read_description
from artkv.run_folder.state import Identity, Progress, TrainableState

FORMAT_VERSION = 1
ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
DESCRIPTION = "checkpoint.json"
LATEST = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read back, every checksum verified."""

    path: Path
    state: TrainableState
    progress: Progress
    identity: Identity
    config: Config


def checkpoint_name(step: int) -> str:
    """The folder's name, such as step_00000500."""
    return f"step_{step:08d}"


def has_checkpoint(run_dir: Path, step: int) -> bool:
    """Whether the run's own folder has the checkpoint of `step`."""
    return (run_dir / "checkpoints" / checkpoint_name(step)).is_dir()


def save_checkpoint(
    run_dir: Path, state: TrainableState, progress: Progress, identity: Identity, config: Config
) -> Path:
    """Writes `run_dir/checkpoints/step_N` and then `latest`; called on rank 0 alone.

    Files go to a temporary folder, are flushed to the disk and checksummed, and the folder is renamed: a
    kill at any moment leaves the checkpoint whole or absent.
    """
    folder = run_dir / "checkpoints"
    final = folder / checkpoint_name(progress.step)
    moments = {f"{name}.exp_avg": tensor for name, tensor in state.exp_avg.items()}
    moments |= {f"{name}.exp_avg_sq": tensor for name, tensor in state.exp_avg_sq.items()}

    def write(temporary: Path) -> None:
        temporary.mkdir()
        save_tensors(state.masters, temporary / ADAPTER, {"format": "pt"})
        save_tensors(moments, temporary / OPTIMIZER, {"format": "pt"})
        description: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(progress),
            "adam_step": state.adam_step,
            "identity": asdict(identity),
            "config": yaml.safe_load(dump_config(config)),
            "sha256": {name: _file_sha256(temporary / name) for name in (ADAPTER, OPTIMIZER)},
        }
        _write_description(temporary / DESCRIPTION, description)

    write_whole(final, write)
    _write_latest(folder, final.name)
    return final


def rewrite_progress(run_dir: Path, progress: Progress) -> None:
    """Writes the score of a validation into the checkpoint of its step, in one rename; called on rank 0 alone."""
    folder = run_dir / "checkpoints" / checkpoint_name(progress.step)
    description = _read_description(folder)
    description["progress"] = asdict(progress)
    write_whole(folder / DESCRIPTION, lambda path: _write_description(path, description))


def set_aside_newer(run_dir: Path, step: int) -> list[str]:
    """Renames the checkpoints after `step` to `stale_step_N`, and returns their names; called on rank 0 alone.

    A run that goes on from an earlier checkpoint writes a new history. What it leaves behind must neither
    be resumed nor count among the newest that are kept.
    """
    folder = run_dir / "checkpoints"
    newer = [name for name in checkpoints_newest_first(run_dir) if name > checkpoint_name(step)]
    for name in newer:
        shutil.rmtree(folder / f"stale_{name}", ignore_errors=True)
        (folder / name).rename(folder / f"stale_{name}")
    best = run_dir / "best"
    if best.is_symlink() and best.readlink().name in newer:
        best.unlink()
    if newer:
        _write_latest(folder, checkpoint_name(step))
    return newer


def mark_best(run_dir: Path, step: int) -> None:
    """Points the link `run_dir/best` at the checkpoint of `step`."""
    temporary = run_dir / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("checkpoints") / checkpoint_name(step))
    temporary.replace(run_dir / "best")


def prune_checkpoints(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    best = run_dir / "best"
    kept = {*names[-keep:], *([best.readlink().name] if best.is_symlink() else [])}
    doomed = run_dir / "checkpoints" / ".pruned.tmp"
    for name in names:
        if name not in kept:
            shutil.rmtree(doomed, ignore_errors=True)  # left by a killed run
            (run_dir / "checkpoints" / name).rename(doomed)  # a kill while removing leaves no half of a checkpoint
            shutil.rmtree(doomed)


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: its folder, a run's folder, its `best` or `latest`, or an exported adapter.

    A transformers folder of `artkv export` stands for the adapter in it.
    """
    path = path.expanduser()
    if (path / KV_PREFIX).is_file():
        path = path / KV_PREFIX
    if path.is_file() and path.suffix == ".safetensors":
        return path.resolve()
    if path.name == LATEST and not path.is_dir():
        path = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if (path / "checkpoints").is_dir():
        names = checkpoints_newest_first(path)
        if not names:
            raise UserError(f"{path}: this run has no checkpoint yet; wait for the first one")
        path = path / "checkpoints" / names[0]
    if not (path / DESCRIPTION).is_file():
        raise UserError(
            f"{path}: no checkpoint there (no {DESCRIPTION}); give a folder such as "
            "outputs/demo/checkpoints/step_00000500, outputs/demo/best or outputs/demo, or an exported adapter"
        )
    return path.resolve()


def run_dir_of(checkpoint: Path) -> Path:
    """The run's folder that a resolved checkpoint lies in; of an exported adapter, a folder of its name beside it."""
    if checkpoint.is_file():
        return checkpoint.with_suffix("")
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def checkpoints_newest_first(run_dir: Path) -> list[str]:
    """Names of a run's checkpoints, by step.

    `latest` is for people and other programs: a checkpoint is whole as soon as it has its name, and one that
    its run did not live to write into `latest` counts too.
    """
    return sorted((path.name for path in (run_dir / "checkpoints").glob("step_*")), reverse=True)


def load_latest(run_dir: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, None if there is none at all.

    A damaged one is reported on stderr and the one before is taken. Raises `UserError` if all are
    damaged.
    """
    names = checkpoints_newest_first(run_dir)
    problems = []
    for name in names:
        try:
            return load_checkpoint(run_dir / "checkpoints" / name)
        except UserError as error:
            problems.append(str(error))
            print(f"artkv: {error}; falling back to the checkpoint before it", file=sys.stderr)
    if problems:
        raise UserError(f"{run_dir}: no checkpoint is readable; start anew in another run.output_dir")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint folder and verifies it; a damaged one is a `UserError` that says how."""
    if path.is_file():
        raise UserError(f"{path}: is an adapter and holds no optimizer state; resume from a checkpoint's folder")
    description = _read_description(path)
    for name in (ADAPTER, OPTIMIZER):
        expected = description["sha256"][name]
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing; the checkpoint is damaged")
        if _file_sha256(path / name) != expected:
            raise UserError(f"{path}: {name} does not match its checksum; the checkpoint is damaged")
    try:
        masters, moments = load_file(path / ADAPTER), load_file(path / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); the checkpoint is damaged") from None
    state = TrainableState(
        masters,
        {name: moments[f"{name}.exp_avg"] for name in masters},
        {name: moments[f"{name}.exp_avg_sq"] for name in masters},
        description["adam_step"],
    )
    return Checkpoint(
        path,
        state,
        Progress(**description["progress"]),
        Identity(**description["identity"]),
        read_config(path),
    )


def read_config(path: Path) -> Config:
    """The settings that a checkpoint was trained with, without reading its tensors."""
    if path.is_file():
        return adapter_config(path)
    try:
        return Config.model_validate(_read_description(path)["config"])
    except ValidationError as error:
        raise UserError(f"{path}: its settings are not this version's ({error}); use the artkv that wrote it") from None


def read_adapter(path: Path) -> dict[str, Tensor]:
    """The trained weights alone, verified, for inference."""
    if path.is_file():
        return adapter_tensors(path)
    expected = _read_description(path)["sha256"][ADAPTER]
    if not (path / ADAPTER).is_file() or _file_sha256(path / ADAPTER) != expected:
        raise UserError(f"{path}: {ADAPTER} is missing or does not match its checksum; the checkpoint is damaged")
    return load_file(path / ADAPTER)


def read_frozen_hash(path: Path) -> str:
    """The hash of the frozen weights that a checkpoint was trained beside, without reading its tensors."""
    if path.is_file():
        return str(read_description(path)["frozen_hash"])
    return Identity(**_read_description(path)["identity"]).frozen_hash


def read_step(path: Path) -> int:
    """The optimizer steps that a checkpoint was trained for, without reading its tensors."""
    if path.is_file():
        return int(read_description(path)["step"])
    return Progress(**_read_description(path)["progress"]).step


def check_fits(
    path: Path, saved_config: Config, config: Config, saved: Mapping[str, Tensor], built: Mapping[str, Tensor]
) -> None:
    """Raises `UserError` unless the weights `saved` at `path` belong to the model that was `built` of `config`.

    Names and shapes must be the same, and the settings that change what a weight does.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in built.items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        first = differing[0]
        raise UserError(
            f"{path}: its trainables differ from this config's in {len(differing)} tensors, first "
            f"{first} (checkpoint: {found.get(first, 'absent')}, config: {expected.get(first, 'absent')}); "
            "give kv_modulation and trainable the values in the checkpoint's config"
        )
    settings: list[tuple[str, ...]] = []
    if config.kv_modulation.enabled:
        settings += [("efficientnet", "image_size"), ("efficientnet", "mean"), ("efficientnet", "std")]
    if config.trainable.lora.targets:
        settings += [("trainable", "lora", "alpha")]
    check_same_settings(path, saved_config, config, settings)


def check_same_settings(path: Path, saved_config: Config, config: Config, settings: Iterable[tuple[str, ...]]) -> None:
    """Raises `UserError` if one of `settings`, each a path of keys, is not what the checkpoint was trained with."""
    for keys in settings:
        before, now = (reduce(getattr, keys, tree) for tree in (saved_config, config))
        if before != now:
            dotted = ".".join(keys)
            written = json.dumps(before)
            raise UserError(
                f"{path}: was trained with {dotted}={written}, now {json.dumps(now)}; the weights would not mean the "
                f"same; set {dotted}={written}"
            )


def check_same_frozen_weights(path: Path, trained_on: str, frozen_hash: str) -> None:
    """Raises `UserError` if the checkpoint was trained beside other frozen weights than those of `frozen_hash`."""
    if trained_on != frozen_hash:
        raise UserError(
            f"{path}: was trained on other frozen weights (hash {trained_on[:12]}, now {frozen_hash[:12]}); "
            "give model.blip2 and efficientnet.checkpoint the files it was trained with"
        )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        version = description["format_version"]
    except OSError as error:
        raise UserError(f"{path}: {DESCRIPTION} cannot be read ({error.strerror}); no checkpoint there") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: {DESCRIPTION} is not valid; the checkpoint is damaged") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: has checkpoint format {version}, this artkv reads {FORMAT_VERSION}; "
            "use the version of artkv that wrote it"
        )
    try:
        is_whole = description["sha256"].pop(DESCRIPTION) == _description_sha256(description)
    except (KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{path}: {DESCRIPTION} does not match its checksum; the checkpoint is damaged")
    return description


def _description_sha256(description: Mapping[str, Any]) -> str:
    """Of everything in checkpoint.json but this checksum itself."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _write_description(path: Path, description: dict[str, Any]) -> None:
    description["sha256"][DESCRIPTION] = _description_sha256(description)
    path.write_text(json.dumps(description, indent=2), encoding="utf-8")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_sha256(file)


def _write_latest(folder: Path, name: str) -> None:
    write_whole(folder / LATEST, lambda path: path.write_text(f"{name}\n", encoding="utf-8"))
