"""What went wrong where a setting was typed, as its text shows: characters that look like others, quotes, commas."""

import re
import unicodedata

from artkv.config.yaml_text import load_yaml

# What pydantic calls a value of another type than a text. (Of a text with a rule of its own that rule says enough.)
_NO_TEXT = re.compile("(bool|int|float|list|tuple|dict|model)_|(literal|none)_|greater|less|finite")
_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a`"
_PLAIN_TYPES = (bool, int, float)


def foreign_character(text: str) -> str | None:
    """The first character that no key of settings has, with its code point; None for a text of ASCII.

    Keys and choices are of ASCII, much of which looks like Cyrillic and Greek letters, and like the quotes and dashes
    of word processors.
    """
    found = next((character for character in text if not character.isascii()), None)
    return None if found is None else f"{found!r}, U+{ord(found):04X} ({unicodedata.name(found, 'without a name')})"


def spaceless(key: str) -> str | None:
    """Of a key that holds a colon and no space behind it, as in `seed:1`: what to write; None for any other."""
    first, colon, rest = key.partition(":")
    if not colon or not re.fullmatch(r"\w+", first):
        return None
    return f"a colon parts a key from its value where a space is behind it; write `{first}: {rest.strip()[:80]}`"


def of_value(value: str, kind: str) -> str | None:
    """What was typed wrongly of a text that stands where none belongs, for a message; None where nothing is known.

    kind: what pydantic calls the error.
    """
    if not _NO_TEXT.match(kind):
        return None
    if (found := foreign_character(value)) is not None:
        return f"it holds {found}"
    if re.fullmatch(r"[-+]?\d+,\d+", value) and not kind.startswith("literal"):
        return "a decimal number has a point, not a comma"
    if value[:1] in _QUOTES and value != "":
        return f"the quotes of YAML are ' and \", not {value[0]}"
    try:
        read = load_yaml(value)
    except ValueError:
        return None
    return "it is in quotes, which make a text of it; write it without" if isinstance(read, _PLAIN_TYPES) else None


def begins_with_quote(text: str) -> bool:
    """Whether a text begins with a quote of word processors or of Markdown, which YAML takes for a part of it."""
    return text[:1] != "" and text[:1] in _QUOTES
