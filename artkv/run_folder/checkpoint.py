"""One checkpoint on disk, read and written: a few safetensors files, and `checkpoint.json` with their checksums.

What trains is small, so a checkpoint holds gathered tensors by backend-neutral name and the number of
ranks may change between save and resume. What `artkv export` wrote of one is read here too.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from artkv.config import Config, dump_config
from artkv.config.explaining import explain
from artkv.errors import UserError
from artkv.files import file_sha256, reason_of, save_tensors, write_whole
from artkv.reading import (
    Count,
    OtherVersion,
    check_regular,
    exists,
    parse_json,
    printable,
    read_regular,
    remedy_for,
    to_record,
)
from artkv.run_folder.adapter_file import KV_PREFIX, adapter_config, adapter_tensors, other_settings, read_description
from artkv.run_folder.layout import CHECKPOINTS, LATEST, checkpoints_newest_first
from artkv.run_folder.state import Identity, Progress, TrainableState

if TYPE_CHECKING:  # torch takes seconds, which a wrong --checkpoint need not wait for
    from torch import Tensor

T = TypeVar("T")

FORMAT_VERSION = 1
ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
DESCRIPTION = "checkpoint.json"
_OTHER = "give another one, such as an earlier step of the run"
_DAMAGED = f"the checkpoint is damaged; {_OTHER}"
_NO_RUN = "is an adapter and holds no optimizer state; resume from a checkpoint's folder"


@dataclass(frozen=True)
class _Description:
    """What `checkpoint.json` holds. sha256: of the checkpoint's files by name; its own is of all else in it."""

    format_version: int
    progress: dict[str, Any]
    adam_step: Count
    identity: dict[str, Any]
    config: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class SavedRun:
    """What `checkpoint.json` holds for a run to go on from. adam_step: the count that Adam's moments belong to."""

    progress: Progress
    identity: Identity
    adam_step: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint or an exported adapter, opened: its description is verified, tensors are when they are asked for.

    path: its folder or file, absolute. config: the settings that it was trained with. frozen_hash: of the weights
    that it was trained beside. step: the optimizer steps that it was trained for. checksums: SHA-256 by file name; of
    an exported adapter, that of its tensors. run: what a run needs to go on; an exported adapter has none. results:
    where an adapter's evaluations go; None: beside it. hub_id: of one that was fetched, as it was asked for.
    """

    path: Path
    config: Config
    frozen_hash: str
    step: int
    checksums: Mapping[str, str]
    run: SavedRun | None = None
    results: Path | None = None
    hub_id: str | None = None

    @property
    def run_dir(self) -> Path:
        """The run's folder that it lies in; of an exported adapter, a folder of its name beside it."""
        if self.run is None:
            return self.results or self.path.with_suffix("")
        return self.path.parent.parent if self.path.parent.name == CHECKPOINTS else self.path.parent

    @property
    def progress(self) -> Progress:
        """Where the run stood; `UserError` for an exported adapter, here and in all that serves to resume."""
        return self._saved_run().progress

    @property
    def identity(self) -> Identity:
        """What a run that goes on from it must share with the one that wrote it."""
        return self._saved_run().identity

    def adapter(self) -> dict[str, "Tensor"]:
        """The trained weights alone, verified, by backend-neutral name, on the CPU."""
        if self.run is None:
            return adapter_tensors(self.path, self.checksums[self.path.name])
        return self._tensors(ADAPTER)

    def state(self) -> TrainableState:
        """Weights and Adam's state, verified."""
        masters, moments = self._tensors(ADAPTER), self._tensors(OPTIMIZER)
        if moments.keys() != {f"{name}.{kind}" for name in masters for kind in ("exp_avg", "exp_avg_sq")}:
            raise UserError(f"{self.path}: {OPTIMIZER} is not of {ADAPTER}; {_DAMAGED}")
        return TrainableState(
            masters,
            {name: moments[f"{name}.exp_avg"] for name in masters},
            {name: moments[f"{name}.exp_avg_sq"] for name in masters},
            self._saved_run().adam_step,
        )

    def check_resumable(self) -> None:
        """Raises `UserError` unless `state` can be read, by the checksums of its files alone."""
        self._saved_run()
        self._check_file(ADAPTER)
        self._check_file(OPTIMIZER)

    def check_fits(self, config: Config, initial_values: Mapping[str, "Tensor"]) -> None:
        """Raises `UserError` unless the weights belong to the model of `config`, whose trainables are `initial_values`.

        Names and shapes must be the same, and the settings that change what a weight does. Reads no tensors.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in initial_values.items()}
        found = self._shapes()
        if expected != found:
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            first = differing[0]
            raise UserError(
                f"{self.path}: its trainables differ from this config's in {len(differing)} tensors, first "
                f"{first} (checkpoint: {found.get(first, 'absent')}, config: {expected.get(first, 'absent')}); "
                "give kv_modulation and trainable the values in the checkpoint's config"
            )
        self.check_same_model(config)

    def check_same_model(self, config: Config) -> None:
        """Raises `UserError` unless the settings that shape the weights, or say what one does, are those of training.

        Enough where no model is built: with these settings alike, names and shapes of trainables are alike too.
        """
        before, now = self.config, config
        settings: list[tuple[str, ...]] = [("kv_modulation", "enabled"), ("trainable", "qformer_cross_attention")]
        settings += [("trainable", "lora", "targets")]
        if before.trainable.lora.targets:
            settings += [("trainable", "lora", name) for name in ("rank", "alpha")]
        self.check_same_settings(now, settings)
        if before.kv_modulation.enabled:
            self._check_same_encoders(now)
            self.check_same_settings(now, [("kv_modulation", name) for name in type(now.kv_modulation).model_fields])

    def check_same_settings(self, config: Config, settings: Iterable[tuple[str, ...]]) -> None:
        """Raises `UserError` if one of `settings`, each a path of keys, is not what the checkpoint was trained with."""
        for keys in settings:
            before, now = (reduce(getattr, keys, tree) for tree in (self.config, config))
            if before != now:
                self._refuse_setting(".".join(keys), before, now)

    def _check_same_encoders(self, config: Config) -> None:
        """Raises `UserError` unless each art encoder sees and is read as it was in training."""
        pairs = list(zip(self.config.used_encoders, config.used_encoders, strict=False))
        names = [[encoder.source_name for encoder in of_config.used_encoders] for of_config in (self.config, config)]
        if max(map(len, names)) > 1 and names[0] != names[1]:
            raise UserError(f"{self.path}: was trained with the art encoders {names[0]}, now {names[1]}; set those")
        for before, now in pairs:
            # Of one shape are networks that compute otherwise, as efficientnet_b3 and tf_efficientnet_b3 do.
            old, new = (encoder.architecture.split(".", maxsplit=1)[0] for encoder in (before, now))
            if old != new:
                self._refuse_setting(f"{now.place}.architecture", old, new)
            for key in ("image_size", "mean", "std", "view", "read", "size"):
                old, new = getattr(before, key), getattr(now, key)
                if old != new:
                    self._refuse_setting(f"{now.place}.{key}", old, new)

    def _refuse_setting(self, dotted: str, before: Any, now: Any) -> None:
        written = json.dumps(before)
        raise UserError(
            f"{self.path}: was trained with {dotted}={written}, now {json.dumps(now)}; the weights would not "
            f"mean the same; set {dotted}={written}"
        )

    def check_frozen_weights(self, frozen_hash: str) -> None:
        """Raises `UserError` if it was trained beside other frozen weights than those of `frozen_hash`.

        Or with a tokenizer that made other tokens; a checkpoint of before that was recorded says nothing of it.
        """
        (weights, *tokenizer), (weights_now, *tokenizer_now) = (
            text.split("+") for text in (self.frozen_hash, frozen_hash)
        )
        if weights != weights_now:
            raise UserError(
                f"{self.path}: was trained on other frozen weights (hash {weights[:12]}, now {weights_now[:12]}); "
                "give model.blip2 and the art encoder's checkpoint the files it was trained with"
            )
        if tokenizer and tokenizer != tokenizer_now:
            raise UserError(
                f"{self.path}: was trained with another tokenizer, which makes other tokens of the same texts (hash "
                f"{tokenizer[0][:12]}, now {''.join(tokenizer_now)[:12]}); give model.blip2, or model.opt beside a "
                ".pth, the tokenizer's files that it was trained with"
            )

    def _saved_run(self) -> SavedRun:
        if self.run is None:
            raise UserError(f"{self.path}: {_NO_RUN}")
        return self.run

    def _check_file(self, name: str) -> None:
        try:
            if not (self.path / name).is_file():
                raise UserError(f"{self.path}: {name} is missing; {_DAMAGED}")
            check_regular(self.path / name)
            found = _file_sha256(self.path / name)
        except OSError as error:
            remedy = remedy_for(error, "look at the disk")
            raise UserError(f"{self.path}: {name} cannot be read ({reason_of(error)}); {remedy}") from None
        if found != self.checksums[name]:
            raise UserError(f"{self.path}: {name} does not match its checksum; {_DAMAGED}")

    def _tensors(self, name: str) -> dict[str, "Tensor"]:
        from safetensors.torch import load_file

        self._saved_run()
        self._check_file(name)
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); {_DAMAGED}") from None

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        path = self.path if self.run is None else self.path / ADAPTER
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({reason_of(error)}); {remedy_for(error, _DAMAGED)}") from None


def open_checkpoint(path: str | Path, to_resume: bool = False) -> Checkpoint:
    """Finds the checkpoint that `path` names, and reads and verifies its description.

    path: a checkpoint's folder; a run's, for its newest; a run's `best` or `checkpoints/latest`; an exported adapter
    file; or a transformers folder of `artkv export`, for the adapter in it. to_resume: for a run to go on from, which
    no exported adapter is.

    Raises:
        UserError: if there is no checkpoint, or its description is damaged or of another version.
    """
    try:
        found = _resolve(Path(os.path.expanduser(path)), to_resume)  # leaves ~nobody as it is, where pathlib raises
    except OSError as error:
        kinds = "a checkpoint's folder, " + ("or a run's" if to_resume else "a run's, or an exported adapter")
        remedy = remedy_for(error, f"give {kinds}")
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); {remedy}") from None
    if found.is_file():
        if to_resume:
            raise UserError(f"{found}: {_NO_RUN}")
        exported = read_description(found)
        checksums = {found.name: exported["sha256"]}
        return Checkpoint(found, adapter_config(found, exported), exported["frozen_hash"], exported["step"], checksums)
    description = _read_description(found)
    progress = _record(Progress, description.progress, found)
    identity = _record(Identity, description.identity, found)
    try:
        config = Config.model_validate(description.config)
    except ValidationError as error:
        raise OtherVersion(explain(error, Config, other_settings(found, "train it again"))) from None
    run = SavedRun(progress, identity, description.adam_step)
    return Checkpoint(found, config, identity.frozen_hash, progress.step, description.sha256, run)


def write_checkpoint(
    folder: Path, state: TrainableState, progress: Progress, identity: Identity, config: Config
) -> None:
    """Writes the checkpoint `folder`, which must not be there yet.

    Files go to a temporary folder, are flushed to the disk and checksummed, and the folder is renamed: a
    kill at any moment leaves the checkpoint whole or absent.
    """
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

    write_whole(folder, write)


def rewrite_progress(folder: Path, progress: Progress) -> None:
    """Writes another `progress`, of the same step, into the checkpoint `folder`, in one rename."""
    description = asdict(_read_description(folder)) | {"progress": asdict(progress)}
    write_whole(folder / DESCRIPTION, lambda path: _write_description(path, description))


def _resolve(path: Path, to_resume: bool) -> Path:
    """The checkpoint's folder, or an exported adapter's file, that `path` names."""
    if (path / KV_PREFIX).is_file():
        path = path / KV_PREFIX
    if path.suffix == ".safetensors" and exists(path) and not path.is_dir():
        check_regular(path)
        return path.resolve()
    if path.name == LATEST and not path.is_dir():
        path = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    if os.path.lexists(path / CHECKPOINTS):
        names = checkpoints_newest_first(path)
        if not names:
            raise UserError(f"{path}: this run has no checkpoint yet; wait for the first one")
        path = path / CHECKPOINTS / names[0]
    if not (exists(path / DESCRIPTION) and (path / DESCRIPTION).is_file()):
        more = ", or latest or auto for run.output_dir's newest" if to_resume else ", or an exported adapter"
        raise UserError(
            f"{path}: no checkpoint there ({_why_none(path)}); give a folder such as "
            f"outputs/demo/checkpoints/step_00000500, outputs/demo/best or outputs/demo{more}"
        )
    return path.resolve()


def _why_none(path: Path) -> str:
    """What is the matter with a path that leads to no checkpoint."""
    is_folder = path.is_dir()
    place, name = (path / DESCRIPTION, f"{DESCRIPTION} ") if is_folder else (path, "")
    if place.is_symlink() and not place.exists():
        return f"{name}is a link to {printable(os.readlink(place))}, which is not there"
    if not os.path.lexists(place):
        return f"no {DESCRIPTION}" if is_folder else "no such file or folder"
    try:
        check_regular(place)
    except OSError as error:
        return f"{name}{reason_of(error)}"
    return "a file, and no adapter by its name: rename it to .safetensors if it is one"


def _read_description(path: Path) -> _Description:
    """What `checkpoint.json` holds, by its checksum, without this one."""
    try:
        tree = parse_json(read_regular(path / DESCRIPTION))
        version, sums = tree["format_version"], tree["sha256"]
    except OSError as error:
        remedy = remedy_for(error, f"no checkpoint there, {_OTHER}")
        raise UserError(f"{path}: {DESCRIPTION} cannot be read ({reason_of(error)}); {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: {DESCRIPTION} is not valid; {_DAMAGED}") from None
    own = sums.pop(DESCRIPTION, None) if isinstance(sums, dict) else None
    is_whole = own is not None and own == _description_sha256(tree)
    if version != FORMAT_VERSION:
        # What is damaged there may be no other version, and the checkpoint before it shall be taken.
        raise (OtherVersion if is_whole else UserError)(
            f"{path}: has checkpoint format {version!r:.80}, this artkv reads {FORMAT_VERSION}; "
            "use the version of artkv that wrote it"
        )
    if not is_whole:
        raise UserError(f"{path}: {DESCRIPTION} does not match its checksum; {_DAMAGED}")
    description = _record(_Description, tree, path)
    if description.sha256.keys() != {ADAPTER, OPTIMIZER}:
        raise UserError(f"{path}: {DESCRIPTION} has the checksums of other files; {_DAMAGED}")
    return description


def _record(kind: type[T], tree: dict[str, Any], path: Path) -> T:
    return to_record(kind, tree, f"{path}: {DESCRIPTION}", _DAMAGED)


def _description_sha256(description: Mapping[str, Any]) -> str:
    """Of everything in checkpoint.json but this checksum itself."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _write_description(path: Path, description: dict[str, Any]) -> None:
    description["sha256"][DESCRIPTION] = _description_sha256(description)
    path.write_text(json.dumps(description, indent=2), encoding="utf-8")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_sha256(file)
