"""Changes single settings of a YAML file and leaves the rest of its text as it is."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from artkv.config.schema import Config
from artkv.config.yaml_text import dump_yaml, parse_yaml, read_text
from artkv.errors import UserError
from artkv.files import told, write_whole

Scalar = str | int | bool | None


def check_is_config(path: Path, place: str) -> None:
    """Raises `UserError` where a file holds anything but sections of settings; what it holds would be ruined.

    place: what named the file, such as an option.
    """
    tree = parse_yaml(read_text(path, place), path, place)
    if unknown := [key for key in tree if key not in Config.model_fields]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        listed = ", ".join(f"{key!r:.80}" for key in unknown[:3])
        raise UserError(
            f"{place} {path}: holds {listed}{more}, so it is no config of artkv; give a config, to put the choice into"
        )
    for key, value in tree.items():
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{place} {path}: {key} = {value!r:.80}: is a section; give keys under it")


def write_settings(path: Path, settings: Mapping[str, Scalar]) -> bool:
    """Sets `section.key` to values in the file; False if that cost its comments, as in a section written in braces.

    The file is replaced whole or left as it is. Raises `UserError` if it cannot be read or written, or is no YAML of
    sections.
    """
    text = read_text(path)
    tree = parse_yaml(text, path)
    edited = text
    for dotted, value in settings.items():
        section, key = dotted.split(".")
        edited = _with_line(edited, section, key, yaml_scalar(value))
        tree[section] = (tree.get(section) or {}) | {key: value}
    try:
        kept = parse_yaml(edited, path) == tree
    except UserError:
        kept = False
    target = path.resolve()  # where it is a link, that stays one

    def write(temporary: Path) -> None:
        temporary.write_text(edited if kept else dump_yaml(tree), encoding="utf-8")
        temporary.chmod(target.stat().st_mode)

    with told(f"config {path}", "make room there, or give --write another file"):
        write_whole(target, write)
    return kept


def yaml_scalar(value: Scalar) -> str:
    """A value as YAML writes it on one line."""
    return yaml.safe_dump(value).removesuffix("...\n").strip()


def _with_line(text: str, section: str, key: str, value: str) -> str:
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(rf"{section}:\s*(#.*)?$", line)]
    if not starts:
        return "\n".join([*lines, f"{section}:", f"  {key}: {value}"]) + "\n"
    start = starts[0]
    indent = None
    for number in range(start + 1, len(lines)):
        if re.match(r"[^\s#]", lines[number]):
            break  # the next section
        found = re.match(r"(\s+)([\w]+):(\s*)([^#]*?)(\s*#.*)?$", lines[number])
        if found is None:
            continue
        indent = indent or found[1]
        if found[2] == key:
            lines[number] = f"{found[1]}{key}: {value}{found[5] or ''}"
            return "\n".join(lines) + "\n"
    lines.insert(start + 1, f"{indent or '  '}{key}: {value}")
    return "\n".join(lines) + "\n"
