"""`--set section.key=value`: paths and texts as they stand, everything else as YAML."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from artkv.config.art_encoders import EfficientNetConfig
from artkv.config.schema import Config
from artkv.config.section import entry_of, is_section
from artkv.config.yaml_text import NoYaml, has_comment, load_yaml, unwanted_character
from artkv.errors import UserError

_NULLS = ("", "~", "null", "Null", "NULL")
# Sections lie in one another two deep.
_MOST_PARTS = 8


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """All of them as one tree of settings, in which the last one of a key counts; `UserError` names the wrong one."""
    tree: dict[str, Any] = {}
    for override in overrides:
        merge(tree, _parse(override))
    return tree


def merge(base: dict[str, Any], extra: dict[str, Any], dotted: str = "") -> None:
    """Puts the settings of `extra` over those of `base`, in place; `UserError` for a value in a section's place.

    An entry of a list is meant by its number, from 0, in a key's place.
    """
    for key, value in extra.items():
        here = f"{dotted}{key}"
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value, f"{here}.")
        elif isinstance(value, dict) and isinstance(base.get(key), (list, tuple)):
            base[key] = _merged_entries(base[key], value, here)
        elif isinstance(base.get(key), dict) and not _replaces(value, here):
            raise UserError(f"--set {here}={value!s:.200}: {here} is a section; name one of its keys")
        elif isinstance(value, dict) and base.get(key) is not None and is_section(_kind_of(here)):
            raise UserError(
                f"{here} = {base[key]!r:.200}: is a section, where --set {here}.{next(iter(value), '...')} is to go; "
                "give keys under it, each as `key: value` with a space"
            )
        else:
            base[key] = value


def check_entries(base: dict[str, Any], extra: dict[str, Any]) -> None:
    """Raises `UserError` where `extra` means an entry, by its number, of a list that `base` does not have."""
    for key, value in extra.items():
        if isinstance(value, dict) and entry_of(_kind_of(key)) is not None and base.get(key) is None:
            number, settings = next(iter(value.items()), ("", None))
            if not str(number).isdecimal():
                continue
            inner = next(iter(settings), None) if isinstance(settings, dict) else None
            given = f"--set {key}.{number}" if inner is None else f"--set {key}.{number}.{inner}"
            is_short = inner in EfficientNetConfig.model_fields
            remedy = f"name efficientnet.{inner}, or write" if is_short else "write"
            raise UserError(
                f"{given}: the config has no list {key} to change; {remedy} the list there in place of efficientnet"
            )


def _merged_entries(entries: Sequence[Any], extra: dict[str, Any], here: str) -> list[Any]:
    """A list, with the settings of `extra`, by an entry's number, over those of its entries."""
    numbered = {str(number): entry for number, entry in enumerate(entries)}
    for number in extra:
        if str(number) not in numbered:
            last = f"0 to {len(numbered) - 1}" if numbered else "none"
            raise UserError(f"--set {here}.{number}: {here} has no such entry; its entries are {last}")
    merge(numbered, {str(number): value for number, value in extra.items()}, f"{here}.")
    return list(numbered.values())


def _replaces(value: Any, dotted: str) -> bool:
    """Whether a value may stand where a section is, or settings of entries: a list of these, or null for neither."""
    kind = _kind_of(dotted)
    if value is None:
        return NoneType in get_args(kind)
    return isinstance(value, list) and entry_of(kind) is not None


def _kind_of(dotted: str) -> Any:
    """The type that the schema gives a setting or a section; None where there is neither."""
    kind: Any = Config
    for key in dotted.split("."):
        entry = entry_of(kind)
        if entry is not None and key.isdecimal():
            kind = entry
            continue
        section = _section_of(kind)
        if section is None or key not in section.model_fields:
            return None
        kind = section.model_fields[key].annotation
    return kind


def _section_of(kind: Any) -> type[BaseModel] | None:
    """The section that a setting of this type is, or may be."""
    return next((one for one in (kind, *get_args(kind)) if is_section(one)), None) if entry_of(kind) is None else None


def names_section(dotted: str) -> bool:
    """Whether this names a section of settings."""
    return is_section(_kind_of(dotted))


def keys_of(dotted: str) -> list[str]:
    """The dotted keys of a section."""
    return [f"{dotted}.{key}" for key in _kind_of(dotted).model_fields]


def is_text(dotted: str) -> bool:
    """Whether a setting is a path or a text, whose value `--set` takes as it stands."""
    annotation = _kind_of(dotted)
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    others = [kind for kind in kinds if kind not in (str, Path, NoneType)]
    return len(others) < len(kinds) and all(get_origin(kind) is Literal for kind in others)


def text_override(dotted: str, value: str | None) -> str:
    """What `parse_overrides` reads as this value of a path or a text: as it stands, in quotes where it must be."""
    if value is None:
        return f"{dotted}=null"
    is_plain = value.strip() not in _NULLS and value.strip()[0] not in "'\""
    return f"{dotted}={value if is_plain else json.dumps(value, ensure_ascii=False)}"


def _parse(override: str) -> dict[str, Any]:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or len(parts) > _MOST_PARTS:
        raise UserError(f"--set {override!r:.200}: expected section.key=value, such as training.num_epochs=3")
    if (found := unwanted_character(override)) is not None:
        raise UserError(f"--set {override!r:.200}: holds {found}; give text of printed characters")
    if is_text(".".join(parts)):
        tree: Any = _text(value.strip() if key != key.rstrip() else value, override)
    else:
        tree = _yaml(value, override)
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _text(value: str, override: str) -> str | None:
    """The value as it stands; of one in quotes, what YAML reads in them; None for null."""
    stripped = value.strip()
    if stripped in _NULLS:
        return None
    quote = stripped[0]
    if quote not in "'\"" or len(stripped) < 2 or stripped[-1] != quote:
        return value
    try:
        read = load_yaml(stripped)
    except ValueError:
        if quote in stripped[1:-1]:  # "this" and "that"
            return value
        raise UserError(
            f"--set {override!r:.200}: YAML cannot read what is in the quotes; leave them out, and the text is taken "
            "as it stands"
        ) from None
    return read if isinstance(read, str) else value


def _yaml(value: str, override: str) -> Any:
    try:
        tree = load_yaml(value)
        is_cut = has_comment(value)
    except NoYaml as error:
        raise UserError(
            f"--set {override!r:.200}: {value!r:.200} is not a YAML value ({error.problem:.200}); give one such as 3, "
            "true, [opt] or {opt: stream}"
        ) from None
    if is_cut:
        raise UserError(f"--set {override!r:.200}: YAML takes what follows the '#' for a comment; leave it out")
    return tree
