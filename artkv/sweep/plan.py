"""What a sweep's file says: which runs there are."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from artkv.config import Config
from artkv.config.loading import read_settings
from artkv.config.mistyped import foreign_character
from artkv.config.overrides import is_text, keys_of, names_section, text_override
from artkv.config.paths import expand_home
from artkv.config.yaml_text import parse_yaml, read_text
from artkv.errors import UserError
from artkv.reading import printable, unseen_character
from artkv.sweep.naming import folder_name, in_a_line, short_keys

SEED = "training.seed"
# A sweep over prefix tokens wants the control, too; the settings have no prefix of 0 tokens.
_TOKENS, _CONTROL = "kv_modulation.num_prefix_tokens", "kv_modulation.enabled"
_MOST_RUNS = 10_000
_GIVEN = {
    "config": "the path of a config",
    "output_dir": "a folder for all runs",
    "split": "train, val or test",
    "grid": f"lists of values, such as grid: {{{SEED}: [1, 2, 3]}}",
    "runs": f"a list of settings, such as runs: [{{{SEED}: 1}}, {{{SEED}: 2}}]",
}
_FOLDER = "run.output_dir"

Settings = dict[str, Any]


class SweepFile(BaseModel):
    """The keys of a sweep's file.

    config: relative to the file. output_dir: of all runs, relative to the working directory as `run.output_dir` is.
    split: that is answered, with all ablations. grid: values of dotted settings, of which each combination is run; or
    a list of such grids, as scikit-learn's `ParameterGrid` takes. runs: mappings of dotted settings; with a grid, each
    with each combination.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str
    output_dir: str
    split: Literal["train", "val", "test"] = "val"
    grid: list[dict[str, list[Any]]] = Field(default_factory=list)
    runs: list[dict[str, Any]] = Field(default_factory=list)

    @field_validator("grid", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return given if isinstance(given, list) else [given]


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    index: from 0, in the file's order. settings: dotted key -> value, as the file has them. overrides: the same as
    `--set` takes them, the folder included.
    """

    index: int
    name: str
    settings: Settings
    overrides: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> Path:
        """Its `run.output_dir`."""
        return self.config.run.output_dir

    @property
    def setting(self) -> Settings:
        """What it is beside its seed."""
        return {key: value for key, value in self.settings.items() if key != SEED}


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, read and checked."""

    path: Path
    config_path: Path
    output_dir: Path
    split: str
    runs: tuple[SweepRun, ...]

    def run(self, index: int) -> SweepRun:
        """One of the runs; `UserError` where there is none."""
        if not 0 <= index < len(self.runs):
            raise UserError(f"--run {index}: {self.path} has runs 0 to {len(self.runs) - 1}")
        return self.runs[index]

    def groups(self) -> list[list[SweepRun]]:
        """Runs that differ in their seed alone, together, in the file's order."""
        groups: dict[str, list[SweepRun]] = {}
        for run in self.runs:
            groups.setdefault(repr(sorted(run.setting.items())), []).append(run)
        return list(groups.values())


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep's file, and the config once for each run; `UserError` names the file, the key and the remedy."""
    file = _read_file(path)
    config_path = path.parent / expand_home(file.config, f"sweep {path}: config")
    combinations = list(_combinations(file, path))
    short = short_keys(combinations)
    output_dir = expand_home(file.output_dir, f"sweep {path}: output_dir")
    try:
        config_settings = read_settings(config_path)
    except UserError as error:
        raise UserError(f"sweep {path}, its key config:\n{error}") from None
    runs: list[SweepRun] = []
    for index, settings in enumerate(combinations):
        name = folder_name(settings, short)
        try:
            overrides = tuple(
                _override(key, value) for key, value in [*_translated(settings), (_FOLDER, str(output_dir / name))]
            )
            config = config_settings.config(overrides)
        except UserError as error:
            raise UserError(f"sweep {path}, run {index} ({name}):\n{error}") from None
        runs.append(SweepRun(index, name, settings, overrides, config))
    (name, count), *_ = Counter(run.name for run in runs).most_common(1)
    if count > 1:
        raise UserError(
            f"sweep {path}: two runs are {name}; leave one out, or give encoders that differ names that differ"
        )
    return Sweep(path, config_path, output_dir, file.split, tuple(runs))


def _read_file(path: Path) -> SweepFile:
    tree = parse_yaml(read_text(path, "sweep"), path, "sweep", "grid")
    if "model" in tree or "dataset" in tree:
        remedy = f"write a sweep's file that names it, as config: {path.name}"
        raise UserError(f"sweep {path}: is the config of one training, by its sections; {remedy}")
    try:
        file = SweepFile.model_validate(tree, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        is_one_grid = not isinstance(tree.get("grid"), list)
        lines = [_explained(problem, is_one_grid) for problem in problems[:20]]
        keys = ", ".join(SweepFile.model_fields)
        raise UserError("\n".join([f"sweep {path}:", *lines, f"  known keys: {keys}"])) from None
    for key in ("config", "output_dir"):
        if not getattr(file, key).strip():
            raise UserError(f"sweep {path}: {key} is empty; give a path")
    for where, settings in [*(("grid", grid) for grid in file.grid), *(("runs", settings) for settings in file.runs)]:
        for key in settings:
            if key != key.strip():
                raise UserError(
                    f"sweep {path}: {where}: the key {key!r:.80} holds a blank at its end or start; write "
                    f"{printable(key.strip())!r:.80}"
                )
            if (foreign := unseen_character(key) or foreign_character(key)) is not None:
                raise UserError(
                    f"sweep {path}: {where}: the key {key!r:.80} holds {foreign}, which no key has; type it anew"
                )
            if names_section(key):
                raise UserError(
                    f"sweep {path}: {where}.{key}: is a section of settings; name one of its keys, such as "
                    f"{next(iter(keys_of(key)))}"
                )
        if _FOLDER in settings or _FOLDER.split(".")[0] in settings:
            raise UserError(f"sweep {path}: {_FOLDER} is the sweep's own; give output_dir instead")
    return file


def _explained(problem: Any, is_one_grid: bool) -> str:
    """A line about what pydantic found: place, value and remedy."""
    loc = problem["loc"]
    if is_one_grid and loc[:2] == ("grid", 0):
        loc = ("grid", *loc[2:])
    place, first = ".".join(map(str, loc)), str((*loc, "")[0])
    if problem["type"] == "missing":
        return f"  {place}: is missing; give {_GIVEN[first]}"
    told = f"  {place or 'the file'} = {problem['input']!r:.80}"
    if problem["type"] == "extra_forbidden":
        unseen = unseen_character(place) or foreign_character(place)
        why = "unknown key; leave it out" if unseen is None else f"the key holds {unseen}; type it anew"
        return f"{printable(told)}: {why}"
    return f"{told}: {problem['msg']}; give {_GIVEN.get(first, 'keys and values')}"


def _combinations(file: SweepFile, path: Path) -> Iterator[Settings]:
    if not any(file.grid) and not file.runs:
        raise UserError(f"sweep {path}: has neither grid nor runs; give settings, such as grid: {{{SEED}: [1, 2, 3]}}")
    for grid in file.grid:
        for key, values in grid.items():
            if not values:
                raise UserError(f"sweep {path}: grid.{key} is empty; give at least one value")
            if any(key in settings for settings in file.runs):
                raise UserError(f"sweep {path}: {key} is in grid and in runs; leave it in one of them")
    listed: Sequence[Settings] = file.runs or [{}]
    grids = file.grid or [{}]
    count = len(listed) * sum(math.prod(map(len, grid.values())) for grid in grids)
    if count > _MOST_RUNS:
        raise UserError(f"sweep {path}: that is {count} runs, and {_MOST_RUNS} are the most; shorten grid or runs")
    for settings, grid in itertools.product(listed, grids):
        for chosen in itertools.product(*grid.values()):
            yield settings | dict(zip(grid, chosen, strict=True))


def _translated(settings: Settings) -> Iterator[tuple[str, Any]]:
    if settings.get(_TOKENS) == 0 and _CONTROL in settings and settings[_CONTROL] is not False:
        raise UserError(
            f"{_TOKENS}: 0 is the control without a prefix, and {_CONTROL} is {settings[_CONTROL]}; leave one out"
        )
    for key, value in settings.items():
        yield (_CONTROL, False) if key == _TOKENS and value == 0 and value is not False else (key, value)


def _override(key: str, value: Any) -> str:
    """As `--set` takes it."""
    if not is_text(key):
        return f"{key}={in_a_line(value)}"
    if value is not None and not isinstance(value, str):
        raise UserError(f"{key} = {value!r:.80}: is no text; put it in quotes")
    return text_override(key, value)
