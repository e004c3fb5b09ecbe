"""Reads a YAML file and `--set` overrides into a `Config`, with errors that name the remedy."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from artkv.config.schema import Config
from artkv.errors import UserError

# Input paths, relative to the config file. run.output_dir is relative to the working directory.
_INPUT_PATHS = [
    ("model", "vit"),
    ("efficientnet", "checkpoint"),
    ("dataset", "train"),
    ("dataset", "val"),
    ("dataset", "test"),
    ("dataset", "image_root"),
    ("frozen", "feature_cache"),
]
# Settings that are either a path or the name of something: a path if it is written as one ('./x', '/x',
# '~/x') or if a file is there.
_PATHS_OR_NAMES = [("model", "blip2"), ("model", "opt"), ("training", "deepspeed")]

_WRITTEN_AS_PATH = re.compile(r"(?:\.{0,2}|~[^/]*)/|\.{1,2}$")

_RECIPES = Path(__file__).parent / "recipes"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


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
    tree = parse_yaml(read_text(path), path)
    _open_empty_sections(tree, Config)
    _resolve_paths(tree, path.parent.resolve())
    return _with_overrides(tree, overrides, path)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with overrides of the form `section.key=value`, as in `load_config`."""
    return _with_overrides(config.model_dump(mode="json"), overrides, "with --set")


def _with_overrides(tree: dict[str, Any], overrides: Sequence[str], source: Path | str) -> Config:
    override_tree: dict[str, Any] = {}
    for override in overrides:
        _merge(override_tree, _parse_override(override), dotted="")
    _resolve_paths(override_tree, Path.cwd())
    _merge(tree, override_tree, dotted="")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, source), on_all_ranks=True) from None


def dump_config(config: Config) -> str:
    """The config as YAML text that `load_config` reads back to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(tree: dict[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_text(path: Path) -> str:
    """The text of a config file; `UserError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"config {path}: cannot be read ({error.strerror}); give --config an existing file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The sections of a config file; `UserError` if it is no YAML, or none of sections."""
    try:
        tree = yaml.load(text, _Loader)
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
        tree: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise UserError(
            f"--set {override!r}: {value!r} is not a YAML value; put the text in quotes inside the shell's, "
            f"as in --set '{key}=\"...\"'"
        ) from None
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


def _open_empty_sections(tree: dict[str, Any], section: type[BaseModel]) -> None:
    """Makes a section whose keys are all commented out, which YAML reads as null, an empty one."""
    for key, inner in _sections_of(section):
        if key in tree and tree[key] is None:
            tree[key] = {}
        if isinstance(tree.get(key), dict):
            _open_empty_sections(tree[key], inner)


def _resolve_paths(tree: dict[str, Any], base: Path) -> None:
    for section, key in _INPUT_PATHS + _PATHS_OR_NAMES:
        values = tree.get(section)
        if not isinstance(values, dict) or not isinstance(values.get(key), str):
            continue
        if (section, key) == ("frozen", "feature_cache") and values[key] == "auto":
            continue  # a folder of that name is written ./auto
        if not values[key].strip():
            raise UserError(f"{section}.{key} = {values[key]!r}: is empty; give a path, or null for none")
        resolved = (base / Path(values[key]).expanduser()).resolve()
        if (section, key) in _INPUT_PATHS or _WRITTEN_AS_PATH.match(values[key]) or resolved.exists():
            values[key] = str(resolved)


def _explain(error: ValidationError, source: Path | str) -> str:
    lines: dict[str, str] = {}  # one a key: a union reports each of its members
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        section, field = _find_field(location)
        dotted = ".".join(location[: len(location) if field is None else location.index(field) + 1])
        message = str(problem["msg"]).removeprefix("Value error, ")
        value = f"{problem['input']!r:.200}"
        if problem["type"] == "extra_forbidden":
            line = f"  {dotted} = {value}: unknown key; {_hint(section, location[-1])}"
        elif field is not None:
            line = f"  {dotted} = {value}: {message}; give {section.model_fields[field].description}"
        elif problem["type"] == "model_type":
            first = next(iter(section.model_fields))
            line = f"  {dotted} = {value}: is a section; give keys under it, such as {dotted}.{first}"
        else:
            line = f"  {dotted + ': ' if dotted else ''}{message}"
        lines.setdefault(dotted, line)
    return "\n".join([f"config {source}:", *lines.values()])


def _hint(section: type[BaseModel], key: str) -> str:
    elsewhere = [dotted for dotted in _all_keys(Config) if dotted.split(".")[-1] == key]
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    if elsewhere or near:
        return f"did you mean {(elsewhere + near)[0]!r}?"
    return f"known keys here: {', '.join(section.model_fields)}"


def _all_keys(section: type[BaseModel], dotted: str = "") -> Iterator[str]:
    sections = dict(_sections_of(section))
    for key in section.model_fields:
        yield dotted + key
        if key in sections:
            yield from _all_keys(sections[key], f"{dotted}{key}.")


def _sections_of(section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for key, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield key, info.annotation


def _find_field(location: list[str]) -> tuple[type[BaseModel], str | None]:
    """The deepest section on the way to `location`, and the field of it, if one is meant."""
    section: type[BaseModel] = Config
    for part in location:
        inner = dict(_sections_of(section))
        if part in inner:
            section = inner[part]
        else:
            return section, part if part in section.model_fields else None
    return section, None
