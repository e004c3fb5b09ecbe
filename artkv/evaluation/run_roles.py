"""What each of several runs is taken for in a comparison: by its settings, a control, another seed, or another run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from artkv.config import Config, load_config
from artkv.errors import UserError
from artkv.evaluation.comparison import ComparedRun
from artkv.reading import exists
from artkv.run_folder.checkpoint import open_checkpoint
from artkv.run_folder.layout import CHECKPOINTS, checkpoints_newest_first
from artkv.run_folder.separation import holds_run
from artkv.run_folder.state import Identity
from artkv.run_folder.status import STATE, read_if_readable

# Names in a comparison, and of the folders behind the split's, of what a run is compared with of its own.
ABLATIONS = {"off": "off", "shuffled": "shuffled", "blank": "on-blank"}
CONTROL = "control"
# What the prefix is held against in a verdict, the strictest first.
BASELINES = (CONTROL, "off")
# What is done to a single art encoder.
MASKS = ("off", "shuffled")
# What `without` begins with: runs that were trained without some of the art encoders of the one that is compared.
WITHOUT = "without "

# What words say of a run that is not what a group of seeds, or a control of theirs, is to be; see `is_as_meant`.
_ANOTHER, _SAME_AS, _NOT_STRICT, _UNFINISHED = "another run: ", "the same as ", "no strict one: ", "has not ended"

_SEED = "training.seed"
# What decides neither what a run learns nor from what. Of `frozen.` opt and storage may quantise.
_OF_NO_MATTER = (
    "run.", "distributed.", "frozen.vit", "frozen.slots", "frozen.resident_blocks", "frozen.memory_budget",
    "frozen.feature_cache", "evaluation.", "dataset.val", "dataset.test", "dataset.image_root",
    "dataset.workers", "dataset.columns.", "dataset.delimiter", "dataset.encoding", "training.activation_checkpointing",
    "training.deepspeed",
)  # fmt: skip
# Where OPT's blocks lie in full precision; that is of no matter either.
_OPT, _PLACES = "frozen.opt", ("auto", "resident", "stream")
# Settings that leave open what was trained: what of a checkpoint counts in their place, and what that is called.
_RESOLVED = {
    "training.gradient_accumulation_steps": ("micro_batches_per_step", "ranks x accumulation"),
    "model.dtype": ("dtype", "model.dtype"),
    "dataset.train": ("data_hash", "the training questions"),
}
# What a control has no use for.
_OF_THE_ENCODERS = ("efficientnet", "art_encoders")
_OF_THE_PREFIX = ("kv_modulation.", *_OF_THE_ENCODERS)
_MOST_SETTINGS_SHOWN = 3


@dataclass(frozen=True)
class Run:
    """A run that was evaluated: its folder, and the settings that it was trained with."""

    folder: Path
    config: Config

    @cached_property
    def identity(self) -> Identity | None:
        """What came of its settings, by its newest checkpoint; None where that is not there or cannot be read."""
        with suppress(UserError):
            for name in checkpoints_newest_first(self.folder):
                return open_checkpoint(self.folder / CHECKPOINTS / name).identity
        return None

    @property
    def is_unfinished(self) -> bool:
        """Whether its training is known not to be at its end."""
        state = (read_if_readable(self.folder / STATE) or {}).get("state", "finished")
        return bool(state != "finished")

    @property
    def has_prefix(self) -> bool:
        """Whether it was trained with one; a control was not."""
        return self.config.kv_modulation.enabled

    @property
    def seed(self) -> int:
        """Its `training.seed`."""
        return self.config.training.seed


@dataclass(frozen=True)
class Roles:
    """What runs were taken for.

    seeds: the run that is compared, and others that differ from it in their seed alone. controls: those trained without
    a prefix. without: those trained without some of its art encoders, by what `without_name` calls that. others: any
    other, by the name of the first one's folder. The runs of each list differ among themselves in their seed alone.
    told: all of them in the order given, with the role in words.
    """

    seeds: list[Run]
    controls: list[Run] = field(default_factory=list)
    without: dict[str, list[Run]] = field(default_factory=dict)
    others: dict[str, list[Run]] = field(default_factory=dict)
    told: list[ComparedRun] = field(default_factory=list)


def open_run(folder: Path) -> Run:
    """The run of a folder; `UserError` if it is none."""
    path = folder / "config.yaml"
    if not exists(folder):
        raise UserError(f"{folder}: no such folder; give the run.output_dir of a run")
    if not exists(path):
        raise UserError(f"{folder}: is no run's folder, there is no config.yaml in it; give a run.output_dir")
    # A person's config has that name too.
    if not (holds_run(folder) or os.path.lexists(folder / "eval")):
        raise UserError(f"{folder}: holds no run, though a config.yaml; give a run.output_dir")
    return Run(folder, load_config(path))


def roles_of(runs: Sequence[Run]) -> Roles:
    """What each run is taken for beside the first one; `UserError` for one that cannot be compared with it."""
    first = runs[0]
    roles = Roles([first])
    for place, run in enumerate(runs):
        taken_for = _take(run, roles) if place else f"the run that is compared, of seed {first.seed}"
        unfinished = f"; its training {_UNFINISHED}" if run.is_unfinished else ""
        roles.told.append(ComparedRun(str(run.folder), f"{taken_for}{unfinished}", run.seed))
    return roles


def _take(run: Run, roles: Roles) -> str:
    """Puts the run where it belongs, and says in words where that is."""
    first = roles.seeds[0]
    if run.has_prefix and not first.has_prefix:
        raise UserError(
            f"{first.folder}: was trained without a prefix, {run.folder} with one; name first the run whose prefix is "
            "to be judged"
        )
    differing = list(_differing(first, run))
    if lacks := lacked_encoders(first.config, run.config):
        name = without_name(lacks)
        _add_seed(run, roles.without.setdefault(name, []))
        return f"trained {name}, of seed {run.seed}"
    if run.has_prefix == first.has_prefix:
        if set(differing) <= {_SEED}:
            _add_seed(run, roles.seeds)
            return f"the same with seed {run.seed}"
    elif not roles.controls or set(_differing(roles.controls[0], run)) <= {_SEED}:
        _add_seed(run, roles.controls)
        more = [key for key in differing if not key.startswith((*_OF_THE_PREFIX, _SEED))]
        return f"a control, of seed {run.seed}" + (f"; {_NOT_STRICT}it differs in {_some(more)} too" if more else "")
    for name, group in roles.others.items():
        # Two of one seed, as a training that was repeated, are held against the first run each.
        if set(_differing(group[0], run)) <= {_SEED} and all(run.seed != other.seed for other in group):
            group.append(run)
            return f"{_SAME_AS}{name}, of seed {run.seed}"
    name = run.folder.name
    if name in (*roles.others, *ablations_of(first.config), CONTROL) or name.startswith(WITHOUT):
        raise UserError(f"{run.folder}: something else is called {name} here; rename the folder")
    roles.others[name] = [run]
    return f"{_ANOTHER}it differs in {_some(differing)}"


def is_as_meant(run: ComparedRun) -> bool:
    """Whether it is a further seed, a strict control or a run that lacks encoders, and its training has ended."""
    taken_for = run.taken_for
    return not (taken_for.startswith((_ANOTHER, _SAME_AS)) or _NOT_STRICT in taken_for or _UNFINISHED in taken_for)


def _add_seed(run: Run, group: list[Run]) -> None:
    for other in group:
        if other.seed == run.seed:
            raise UserError(
                f"{run.folder}: has the settings and the seed of {other.folder}, and is no further seed of it; leave "
                "it out"
            )
    group.append(run)


def masked_encoders(config: Config) -> tuple[str, ...]:
    """The art encoders that are switched off and shuffled one by one: all of several, none where there is one alone."""
    names = tuple(encoder.source_name for encoder in config.used_encoders)
    return names if len(names) > 1 else ()


def masked_folder(encoder: str, prefix: str) -> str:
    """What the folder of an ablation of one encoder is called behind the split's name, such as `brushwork-off`."""
    return f"{encoder}-{prefix}"


def masked_name(encoder: str, prefix: str) -> str:
    """What a comparison calls an ablation of one encoder, such as `brushwork off`."""
    return f"{encoder} {prefix}"


def masked_names(encoders: Sequence[str]) -> list[str]:
    """What a comparison calls the ablations of single encoders, in their order."""
    return [masked_name(encoder, prefix) for encoder in encoders for prefix in MASKS]


def ablations_of(config: Config) -> dict[str, str]:
    """By their names in a comparison, the names of a run's own ablations' folders; `ABLATIONS`, then each encoder's."""
    return ABLATIONS | {
        masked_name(encoder, prefix): masked_folder(encoder, prefix)
        for encoder in masked_encoders(config)
        for prefix in MASKS
    }


def without_name(encoders: Sequence[str]) -> str:
    """What a comparison calls runs that were trained without these encoders, such as `without brushwork`."""
    return f"{WITHOUT}{', '.join(encoders)}"


def lacked_encoders(config: Config, other: Config) -> tuple[str, ...]:
    """The art encoders of a run that another one was trained without, by their names in the run.

    Empty unless the other one has some of the run's encoders and no more, each with the same settings but for its name,
    and is otherwise the same training but for the seed.
    """
    left = [(encoder.source_name, encoder.model_dump(exclude={"name"})) for encoder in config.used_encoders]
    if not other.used_encoders or len(other.used_encoders) >= len(left):
        return ()
    if not all(key.startswith((*_OF_THE_ENCODERS, _SEED)) for key in differing_settings(config, other)):
        return ()
    for encoder in other.used_encoders:
        settings = encoder.model_dump(exclude={"name"})
        found = [one for one in left if one[1] == settings]
        if not found:
            return ()
        left.remove(next((one for one in found if one[0] == encoder.source_name), found[0]))
    return tuple(name for name, _ in left)


def differing_settings(first: Config, other: Config) -> Iterator[str]:
    """Dotted keys of the settings in which two trainings differ; of two without a prefix not those of the prefix."""
    settings, others = (all_settings(config) for config in (first, other))
    of_no_use = () if first.kv_modulation.enabled or other.kv_modulation.enabled else _OF_THE_PREFIX
    for key, value in settings.items():
        is_place = key == _OPT and {value, others[key]} <= {*_PLACES}
        if value != others.get(key) and not key.startswith((*_OF_NO_MATTER, *of_no_use)) and not is_place:
            yield key


def all_settings(config: Config) -> dict[str, Any]:
    """All settings by their dotted keys, in plain values."""
    return dict(_flat(config.model_dump(mode="json")))


def _differing(first: Run, other: Run) -> Iterator[str]:
    """In what two trainings differ: settings, or what came of them where both have a checkpoint."""
    keys = list(differing_settings(first.config, other.config))
    if first.identity is None or other.identity is None:
        yield from keys
        return
    yield from (key for key in keys if key not in _RESOLVED)
    for field_name, called in _RESOLVED.values():
        if getattr(first.identity, field_name) != getattr(other.identity, field_name):
            yield called


def _flat(tree: Mapping[str, Any], dotted: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{dotted}{key}.")
        else:
            yield f"{dotted}{key}", value


def _some(settings: Sequence[str]) -> str:
    more = len(settings) - _MOST_SETTINGS_SHOWN
    return ", ".join(settings[:_MOST_SETTINGS_SHOWN]) + (f" and {more} more" if more > 0 else "")
