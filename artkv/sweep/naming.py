"""What the runs of a sweep are called: in tables, and as folders."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_ENCODERS, _SHORT_FORM = "art_encoders", "efficientnet"
# Bytes. File systems take 255, and temporary names are longer than what they stand for.
_LONGEST_NAME = 200
_UNSAFE = re.compile(r"[^\w.=,+-]+")


def short_keys(combinations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last part of each key, or all of it where two end alike."""
    keys = list(dict.fromkeys(key for settings in combinations for key in settings))
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def told_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Each setting's value as people read it: of a list of art encoders their names, and what is read of each.

    `efficientnet: null` says nothing where a list of encoders stands beside it, and is left out.
    """
    return {
        key: _told_encoders(value) if key == _ENCODERS else in_a_line(value)
        for key, value in settings.items()
        if not (key == _SHORT_FORM and value is None and _ENCODERS in settings)
    }


def folder_name(settings: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """A folder's name that tells the settings."""
    told = told_settings(settings)
    name = _UNSAFE.sub("_", ",".join(f"{short[key]}={value}" for key, value in told.items()))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 4]}_{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}"


def in_a_line(value: Any) -> str:
    """A value as YAML in a line, which `--set` reads back."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _told_encoders(value: Any) -> str:
    """Such as `brushwork map 4 + palette`; as YAML where it is no list of encoders, which is found out later."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        return in_a_line(value)
    return " + ".join(map(_told_encoder, value))


def _told_encoder(entry: Mapping[str, Any]) -> str:
    name = entry.get("name") or str(entry.get("architecture")).split(".", maxsplit=1)[0]
    read = [entry[key] for key in ("read", "size") if key in entry and entry[key] != "pooled"]
    return " ".join(map(str, [name, *read]))
