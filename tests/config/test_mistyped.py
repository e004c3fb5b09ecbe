"""What was typed wrongly is named, and nothing is said of what is right in its place."""

import pytest

from artkv.config.mistyped import begins_with_quote, foreign_character, of_value, spaceless


def test_letters_that_look_alike_are_told_by_their_code_points() -> None:
    assert foreign_character("batch_size") is None
    assert foreign_character("b\u0430tch_size") == "'\u0430', U+0430 (CYRILLIC SMALL LETTER A)"
    assert foreign_character("\ue000") == "'\\ue000', U+E000 (without a name)"


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        ("0,001", "float_type", "a decimal number has a point, not a comma"),
        ("0,001", "literal_error", None),
        ("4", "int_type", "it is in quotes, which make a text of it; write it without"),
        ("true", "bool_type", "it is in quotes, which make a text of it; write it without"),
        ("four", "int_type", None),
        ("`float32`", "literal_error", "the quotes of YAML are ' and \", not `"),
        ("Gem\u00e4lde", "value_error", None),  # a text may hold any letter: its own rule says what is wrong
        ("\u0430uto", "literal_error", "it holds '\u0430', U+0430 (CYRILLIC SMALL LETTER A)"),
    ],
)
def test_a_value_of_another_kind_is_told_by_how_it_was_typed(value: str, kind: str, told: str | None) -> None:
    assert of_value(value, kind) == told


def test_a_key_without_the_space_behind_its_colon_is_told() -> None:
    assert (spaceless("seed:1") or "").endswith("write `seed: 1`")
    assert spaceless("seed") is None


def test_quotes_of_word_processors_are_seen() -> None:
    assert begins_with_quote("\u201ca.csv\u201d")
    assert not begins_with_quote("a.csv")
    assert not begins_with_quote("")
