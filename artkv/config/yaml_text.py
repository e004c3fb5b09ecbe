"""YAML as artkv takes it: settings and nothing else, within bounds, with errors that name the line.

What PyYAML would read in a surprising way (`1:30` as 90, `010` as 8), build without an end (aliases of aliases) or fail
on with an error of its own is an error here.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from artkv.errors import UserError
from artkv.file_kinds import every_second_byte_is_nul, no_text_kind
from artkv.reading import read_regular, remedy_for

# A config has some thousand bytes, a sweep of ten thousand runs a million.
MOST_BYTES = 2 * 2**20
# Values, with what aliases stand for counted each time.
MOST_NODES = 100_000
# Lists and mappings in one another; settings have three.
MOST_DEPTH = 30
# Characters of a number. Python reads no more than 4,300 digits, and cannot write what it reads of hexadecimal ones.
MOST_DIGITS = 60

_PREFIX = "tag:yaml.org,2002:"
_PLAIN_KINDS = [f"{_PREFIX}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")]
# What PyYAML lets through of what it finds in a text, such as the arguments of chr().
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as YAML 1.2 does, and takes text for keys, each of them once."""

    yaml_constructors = {  # noqa: RUF012  (as PyYAML has it)
        None: yaml.SafeLoader.yaml_constructors[None],
        **{tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _PLAIN_KINDS},
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # By node: how many values it stands for, itself included, and how deep they lie in one another.
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML does, and adds up how many values there are once aliases stand for what they mean."""
        event = self.peek_event()
        if self._depth > MOST_DEPTH:
            raise _problem(f"lists and mappings lie in one another more than {MOST_DEPTH} deep", event.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and id(node) not in self._sizes:
            raise _problem(f"the anchor {event.anchor!r:.80} contains itself", event.start_mark)
        if node is not None and id(node) not in self._sizes:
            values, depth = self._sizes[id(node)] = self._measure(node)
            if len(self._sizes) > MOST_NODES or values > MOST_NODES or depth > MOST_DEPTH:
                raise _problem(
                    f"more than {MOST_NODES:,} values, or {MOST_DEPTH} in one another, with aliases counted",
                    event.start_mark,
                )
        return node

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        children = []
        if isinstance(node, yaml.MappingNode):
            children = [self._sizes[id(child)] for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = [self._sizes[id(child)] for child in node.value]
        return 1 + sum(size for size, _ in children), 1 + max((depth for _, depth in children), default=0)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As PyYAML does; a key that is no text, or is given twice, is an error."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        before = ""  # the value that stands before a key, in one line of braces
        for key, value in node.value:
            if key.tag == f"{_PREFIX}merge":
                continue
            if key.tag != f"{_PREFIX}str":
                is_text = isinstance(key, yaml.ScalarNode)
                stands_alone = is_text and key.end_mark.index == value.start_mark.index
                if stands_alone and re.fullmatch(r"[0-9]+(e[-+]?[0-9]+)?", key.value):
                    number = f"{before}.{key.value}" if re.fullmatch("[-+]?[0-9]+", before) else f"0.{key.value}"
                    raise _problem(
                        f"{key.value!r:.80} stands behind a comma, where a key and its value belong; a decimal number "
                        f"has a point: write {number:.80}, if that is meant",
                        key.start_mark,
                    )
                if isinstance(key, yaml.MappingNode):
                    raise _problem(
                        "the key is no text, but in braces; fill in a template's placeholder, such as {{ name }}, or "
                        "put it in quotes",
                        key.start_mark,
                    )
                shown = f"{key.value!r:.80} " if is_text else ""
                raise _problem(f"the key {shown}is no text; put it in quotes", key.start_mark)
            if key.value in seen:
                raise _problem(f"the key {key.value!r:.80} is given twice", key.start_mark)
            seen.add(key.value)
            before = value.value if isinstance(value, yaml.ScalarNode) else ""
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number that is one in every version of YAML."""
        kind = node.tag.removeprefix(_PREFIX)
        text = self.construct_scalar(node)
        if len(text) > MOST_DIGITS:
            raise _problem(f"a number of {len(text):,} characters", node.start_mark)
        if re.search(r"^[-+]?0b|[0-9a-fA-F]_|_[0-9a-fA-F]", text):
            plain = text.replace("_", "") if re.fullmatch("[0-9_]+", text) else "decimal digits alone"
            raise _problem(
                f"{text!r} is a number in YAML 1.1 and a text in 1.2; write {plain}, or put it in quotes",
                node.start_mark,
            )
        if ":" in text or re.match(r"[-+]?0[0-9_]*[0-9]$", text):
            plain = f" ({text.lstrip('0') or '0'})" if text.isdecimal() else ""
            raise _problem(
                f"{text!r} is another number in YAML 1.1 than in 1.2; write a number in decimal digits{plain}, a "
                "text in quotes",
                node.start_mark,
            )
        number = self.construct_yaml_int if kind == "int" else self.construct_yaml_float
        try:
            return number(node)
        except (ValueError, ArithmeticError, LookupError):
            raise _problem(f"{text!r} is no number", node.start_mark) from None

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        """true or false, in YAML 1.1's ways to write them."""
        text = self.construct_scalar(node)
        if text.lower() not in self.bool_values:
            raise _problem(f"{text!r:.80} is neither true nor false", node.start_mark)
        return self.bool_values[text.lower()]

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Text without what no setting has use for."""
        text: str = self.construct_scalar(node)
        if (found := unwanted_character(text)) is not None:
            raise _problem(f"the text {text!r:.80} holds {found}", node.start_mark)
        return text


class NoYaml(ValueError):
    """A text that is no YAML, or none of settings. problem: what is wrong, on one line and without its place."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(text)
        self.problem = problem


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(
        f"{_PREFIX}float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
for _tag in (f"{_PREFIX}int", f"{_PREFIX}float"):
    _Loader.add_constructor(_tag, _Loader.construct_number)
_Loader.add_constructor(f"{_PREFIX}bool", _Loader.construct_truth)
_Loader.add_constructor(f"{_PREFIX}str", _Loader.construct_text)
# No setting is a date: 2024-05-01 is the name of a folder.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_PREFIX}timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """The one document of a text, of mappings, lists, texts, numbers, true, false and null.

    Raises `NoYaml`, with the line where there is one, for anything else.
    """
    if len(text) > MOST_BYTES:
        many = f"has {len(text):,} characters, more than the {MOST_BYTES:,} that settings have"
        raise NoYaml(many, many)
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:  # of a whole text it knows the character's place in it
        problem = f"{text[error.position]!r} stands there, and {error.reason}"
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise NoYaml(f"{problem}\n  in line {line}, column {column}", problem) from None
    except _NOT_YAML as error:
        told = str(error) or type(error).__name__
        if "mapping values are not allowed here" in told:
            told += "; or the line above it lacks the space behind its colon"
        raise NoYaml(told, getattr(error, "problem", None) or " ".join(told.split())) from None
    finally:
        if loader is not None:
            loader.dispose()


def has_comment(text: str) -> bool:
    """Whether YAML leaves out a part of a text that `load_yaml` takes, as a comment."""
    tokens = list(yaml.scan(text, _Loader))
    ends = [0, *(token.end_mark.index for token in tokens)]
    starts = [*(token.start_mark.index for token in tokens), len(text)]
    return any("#" in text[end:start] for end, start in zip(ends, starts, strict=True))


def unwanted_character(text: str) -> str | None:
    """What stands in a text and in no setting: half a character, or one that controls a terminal; None if nothing."""
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs":
            return "bytes that are no UTF-8"
        if category == "Cc" and character not in "\t\n\r":
            return f"the control character {character!r}"
    return None


def dump_yaml(tree: dict[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_text(path: Path, kind: str = "config") -> str:
    """The text of a config file, or of another kind of file that is called so; `UserError` if it cannot be read."""
    remedy = f"give an existing {kind} file"  # which an option, a sweep's file or a run's folder names
    try:
        data = read_regular(path, MOST_BYTES)
        if len(data) > 3 and every_second_byte_is_nul(data):
            raise UserError(f"{kind} {path}: not UTF-8 text (every second byte is NUL, as in UTF-16); save it as UTF-8")
        if (other := no_text_kind(data)) is not None:
            raise UserError(f"{kind} {path}: is {other}, and no text; {remedy}, in YAML")
        return data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{kind} {path}: cannot be read ({error.strerror}); {remedy_for(error, remedy)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except ValueError as error:  # of the path itself
        raise UserError(f"{kind} {path}: is no path ({error}); {remedy}") from None


def parse_yaml(text: str, path: Path, kind: str = "config", key: str = "model") -> dict[str, Any]:
    """The sections of a config file; `UserError` if it is no YAML, or none of sections.

    kind: what the file is called, where it is no config; key: one that it may have.
    """
    try:
        tree = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{kind} {path}: not valid YAML: {error}; correct the line named") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        expected = "sections" if kind == "config" else "keys"
        held = "a list" if isinstance(tree, list) else "a text" if isinstance(tree, str) else "a single value"
        begins = " ".join(str(tree).split())
        raise UserError(
            f"{kind} {path}: holds {held} alone, {begins!r:.60}, and no {expected} such as '{key}:'; give another file"
        )
    return tree


def _problem(text: str, mark: Any) -> ConstructorError:
    return ConstructorError(None, None, text, mark)
