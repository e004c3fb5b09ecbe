"""Reads a YAML file and `--set` overrides into a `Config`, with errors that name the remedy."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from artkv.config.schema import Config
from artkv.errors import UserError

# Input paths, relative to the config file. run.output_dir is relative to the working directory.
_INPUT_PATHS = [
    ("model", "opt"),
    ("model", "vit"),
    ("efficientnet", "checkpoint"),
    ("dataset", "train"),
    ("dataset", "val"),
    ("dataset", "test"),
    ("dataset", "image_root"),
]
# Settings that are either a path or the name of something: a path only if a file is there.
_PATHS_OR_NAMES = [("model", "blip2"), ("training", "deepspeed")]

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
    path = Path(path)
    tree = _read_yaml(path)
    _resolve_paths(tree, path.parent.resolve())
    override_tree: dict[str, Any] = {}
    for override in overrides:
        _merge(override_tree, _parse_override(override), dotted="")
    _resolve_paths(override_tree, Path.cwd())
    _merge(tree, override_tree, dotted="")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from None


def dump_config(config: Config) -> str:
    """The config as YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"config {path}: cannot be read ({error.strerror}); give --config an existing file"
        ) from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"config {path}: not valid YAML: {error}; correct the line named") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"config {path}: holds {type(tree).__name__}, expected sections such as 'model:'")
    return tree


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UserError(f"--set {override!r}: expected section.key=value, such as training.num_epochs=3")
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: {value!r} is not a YAML value; quote it") from None
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _merge(base: dict[str, Any], extra: dict[str, Any], dotted: str) -> None:
    for key, value in extra.items():
        here = f"{dotted}{key}"
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, f"{here}.")
        elif isinstance(base.get(key), dict):
            raise UserError(f"--set {here}={value}: {here} is a section; name one of its keys")
        else:
            base[key] = value


def _resolve_paths(tree: dict[str, Any], base: Path) -> None:
    for section, key in _INPUT_PATHS + _PATHS_OR_NAMES:
        values = tree.get(section)
        if not isinstance(values, dict) or not isinstance(values.get(key), str):
            continue
        resolved = (base / Path(values[key]).expanduser()).resolve()
        if (section, key) in _INPUT_PATHS or resolved.exists():
            values[key] = str(resolved)


def _explain(error: ValidationError, path: Path) -> str:
    lines = [f"config {path}:"]
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        section, field = _find_field(location)
        dotted = ".".join(location[: len(location) if field is None else location.index(field) + 1])
        if problem["type"] == "extra_forbidden":
            names = list(section.model_fields) if section else []
            near = difflib.get_close_matches(location[-1], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(names)}"
            lines.append(f"  {'.'.join(location)} = {problem['input']!r}: unknown key; {hint}")
        elif field is None or section is None:
            message = str(problem["msg"]).removeprefix("Value error, ")
            lines.append(f"  {dotted + ': ' if dotted else ''}{message}")
        else:
            remedy = section.model_fields[field].description or "a valid value"
            message = str(problem["msg"]).removeprefix("Value error, ")
            lines.append(f"  {dotted} = {problem['input']!r}: {message}; give {remedy}")
    return "\n".join(dict.fromkeys(lines))


def _find_field(location: list[str]) -> tuple[type[BaseModel] | None, str | None]:
    """The deepest section on the way to `location`, and the field of it, if one is meant."""
    section: type[BaseModel] = Config
    for part in location:
        info = section.model_fields.get(part)
        if info is None:
            return section, None
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            section = info.annotation
        else:
            return section, part
    return section, None
