"""What pydantic finds wrong with settings, as lines that name key, value and remedy."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from artkv.config import mistyped
from artkv.config.section import entry_of, is_section
from artkv.reading import printable, unseen_character

# Lines of an error: a file of another program has thousands of unknown keys.
_MOST_PROBLEMS = 20


def explain(
    error: ValidationError, root: type[BaseModel], heading: str, unsupported: Mapping[str, str] | None = None
) -> str:
    """A line for each key that is wrong, below `heading`.

    root: the section that was validated; the description of each field of it is the remedy. unsupported: by dotted key,
    why it is unknown though somebody may look for it.
    """
    lines: dict[str, str] = {}  # one a key: a union reports each of its members
    problems = error.errors(include_url=False, include_context=False)
    for problem in problems:
        location = [str(part) for part in problem["loc"]]
        section, field = _find_field(root, location)
        if len(lines) == _MOST_PROBLEMS:
            lines["more"] = f"  and more, of {len(problems):,} in all"
            break
        dotted = ".".join(location[: len(location) if field is None else location.index(field) + 1])
        lines.setdefault(dotted, f"  {_line(problem, f'{dotted:.200}', section, field, (root, unsupported or {}))}")
    return "\n".join([heading, *lines.values()])


def sections_of(section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The fields of a section that are sections, or may be one."""
    for key, info in section.model_fields.items():
        for kind in (info.annotation, *get_args(info.annotation)):
            if is_section(kind):
                yield key, kind


def _line(
    problem: Any,
    dotted: str,
    section: type[BaseModel],
    field: str | None,
    known: tuple[type[BaseModel], Mapping[str, str]],
) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = f"{problem['input']!r:.200}"
    if isinstance(problem["input"], str) and (unseen := unseen_character(problem["input"])) is not None:
        value += f", which holds {unseen}"
    if problem["type"] == "extra_forbidden":
        root, unsupported = known
        key = str(problem["loc"][-1])
        if (unseen := unseen_character(key)) is not None:
            return f"{printable(dotted)} = {value}: the key holds {unseen}, which cannot be seen; type it anew"
        if (foreign := mistyped.foreign_character(key)) is not None:
            return f"{printable(dotted)} = {value}: the key holds {foreign}, which no key has; type it anew"
        why = unsupported.get(dotted) or _of_dots(section, key) or _of_colons(root, key, problem["input"])
        return f"{dotted} = {value}: {why or f'unknown key; {_hint(root, section, key)}'}"
    if problem["type"] == "missing" and (field is None or problem["loc"][-1] == field):
        such = f"it, with keys such as {next(iter(section.model_fields))}"
        return f"{dotted}: is missing; give {such if field is None else section.model_fields[field].description}"
    if (
        isinstance(problem["input"], str)
        and (typed := mistyped.of_value(problem["input"], problem["type"])) is not None
    ):
        message += f" ({typed})"
    if field is not None:
        return f"{dotted} = {value}: {message}; give {section.model_fields[field].description}"
    if problem["type"] == "model_type":
        first = next(iter(section.model_fields))
        spaced = ", each as `key: value` with a space" if ":" in str(problem["input"]) else ""
        return f"{dotted} = {value}: is a section; give keys under it, such as {dotted}.{first}{spaced}"
    return f"{dotted + ': ' if dotted else ''}{message}"


def _of_dots(section: type[BaseModel], key: str) -> str | None:
    """Of a key such as training.seed, which `--set` takes, and which no file has: what to write; None for any other."""
    first, _, rest = key.partition(".")
    if not rest or first not in dict(sections_of(section)):
        return None
    return f"a key with a dot is no way into a section; write {rest!r:.80} as a key of its own under {first!r}"


def _of_colons(root: type[BaseModel], key: str, value: object) -> str | None:
    """Of a key with a colon, as in seed:1 and training:seed, what to write; None for any other."""
    if (dotted := key.replace(":", ".")) != key and dotted in _all_keys(root):
        return f"unknown key; did you mean {dotted!r}?"
    return mistyped.spaceless(key) if value is None else None


def _hint(root: type[BaseModel], section: type[BaseModel], key: str) -> str:
    elsewhere = [dotted for dotted in _all_keys(root) if dotted.split(".")[-1] == key]
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    if elsewhere or near:
        return f"did you mean {(elsewhere + near)[0]!r}?"
    return f"known keys here: {', '.join(section.model_fields)}"


def _all_keys(section: type[BaseModel], dotted: str = "") -> Iterator[str]:
    sections = dict(sections_of(section))
    for key in section.model_fields:
        yield dotted + key
        if key in sections:
            yield from _all_keys(sections[key], f"{dotted}{key}.")


def _find_field(root: type[BaseModel], location: list[str]) -> tuple[type[BaseModel], str | None]:
    """The deepest section on the way to `location`, and the field of it, if one is meant."""
    section = root
    entries: type[BaseModel] | None = None  # of the list that was named last
    for number, part in enumerate(location):
        inner = dict(sections_of(section))
        entry = entry_of(section.model_fields[part].annotation) if part in section.model_fields else None
        if entries is not None and part.isdecimal():
            section, entries = entries, None
        elif part in inner:
            section = inner[part]
        elif entry is not None and number + 1 < len(location):
            entries = entry
        else:
            return section, part if part in section.model_fields else None
    return section, None
