"""Values of options: what is taken, and what is wrong usage."""

import argparse
from pathlib import Path

import pytest

from artkv.argument_values import png_path, some_path, some_prefix, some_text, whole_number


def test_whole_numbers_are_plain_digits_within_bounds() -> None:
    port = whole_number(0, 65_535)
    assert [port("0"), port("7860"), port("65535")] == [0, 7860, 65535]
    for text in ("-1", "65536", "1e9", "9" * 5000, "1_0", "٣", "", " 1", "0x10", "1.0"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 0 to 65535") as caught:
            port(text)
        assert len(str(caught.value)) < 200


def test_paths_and_texts_are_not_empty() -> None:
    for take in (some_path, some_text, png_path):
        for text in ("", " ", "a\0b"):
            with pytest.raises(argparse.ArgumentTypeError, match="is empty, or holds a NUL"):
                take(text)
    with pytest.raises(argparse.ArgumentTypeError, match="give it a name that ends in .png"):
        png_path("a.jpg")


def test_home_is_expanded_though_the_shell_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert some_path("~/x") == "/home/me/x"
    assert some_path("a ~ b") == "a ~ b"
    assert some_path("./~x") == str(Path.cwd() / "~x")
    with pytest.raises(argparse.ArgumentTypeError, match="no home folder is known for '~nobody_here'"):
        some_path("~nobody_here/x")


def test_a_prefix_may_name_an_encoder() -> None:
    given = ["on", "off", "shuffled", "off:brushwork", "shuffled:a:b"]
    assert [some_prefix(text) for text in given] == [
        ("on", None), ("off", None), ("shuffled", None), ("off", "brushwork"), ("shuffled", "a:b"),
    ]  # fmt: skip
    for text in ("", "On", "on:a", "off:", "shuffled: ", ":a", "off a", "blank", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="is none of on, off and shuffled") as caught:
            some_prefix(text)
        assert len(str(caught.value)) < 250
