"""Reads a YAML file and `--set` overrides into a `Config`, with errors that name the remedy."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from artkv.config.explaining import explain, sections_of
from artkv.config.other_files import other_kind
from artkv.config.overrides import check_entries, merge, parse_overrides
from artkv.config.paths import resolve_paths
from artkv.config.schema import Config
from artkv.config.yaml_text import dump_yaml, parse_yaml, read_text
from artkv.errors import UserError

_RECIPES = Path(__file__).parent / "recipes"


def recipe_path(name: str) -> Path:
    """The path of a recipe that ships with the package, such as `artquest.yaml`."""
    return _RECIPES / name


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads settings from `path` and applies overrides of the form `section.key=value`.

    Input paths come back absolute: those in the file are relative to the file, those in an override
    to the working directory. Raises `UserError` that names the file, the dotted key, the value and
    the remedy.
    """
    return read_settings(path).config(overrides)


class Settings:
    """The settings of one file, read once, for configs that differ in their overrides.

    source: the file, or what else the settings are from, as errors name it.
    """

    def __init__(self, tree: dict[str, Any], source: Path | str) -> None:
        self._tree = tree
        self._source = source

    def config(self, overrides: Sequence[str]) -> Config:
        """As `load_config` makes it."""
        tree, override_tree = copy.deepcopy(self._tree), parse_overrides(overrides)
        resolve_paths(override_tree, Path.cwd())
        check_entries(tree, override_tree)
        merge(tree, override_tree)
        try:
            return Config.model_validate(tree)
        except ValidationError as error:
            raise UserError(explain(error, Config, f"config {self._source}:"), on_all_ranks=True) from None


def read_settings(path: str | Path) -> Settings:
    """Reads a config file; `UserError` if it holds no sections of settings, or cannot be read."""
    path = Path(path)
    tree = parse_yaml(read_text(path), path)
    if (other := other_kind(tree, Config.model_fields)) is not None:
        raise UserError(f"config {path}: {other}")
    _open_empty_sections(tree, Config)
    resolve_paths(tree, Path(os.path.realpath(path.parent)))
    return Settings(tree, path)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with overrides of the form `section.key=value`, as in `load_config`."""
    return Settings(config.model_dump(mode="json"), "with --set").config(overrides)


def dump_config(config: Config) -> str:
    """The config as YAML text that `load_config` reads back to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def _open_empty_sections(tree: dict[str, Any], section: type[BaseModel]) -> None:
    """Makes a section whose keys are all commented out, which YAML reads as null, an empty one."""
    for key, inner in sections_of(section):
        if key in tree and tree[key] is None:
            tree[key] = {}
        if isinstance(tree.get(key), dict):
            _open_empty_sections(tree[key], inner)
