"""YAML in, plain values out, or a ValueError; within bounds of time and memory whatever the text is."""

import os
import time
from pathlib import Path

import pytest
import yaml

from artkv.config.yaml_text import MOST_NODES, NoYaml, dump_yaml, has_comment, load_yaml, read_text
from artkv.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-4", {"a": 1e-4}),
        ("a: '1_000'", {"a": "1_000"}),
        ("a: 0x10", {"a": 16}),
        ("a: 0", {"a": 0}),
        ("a: -0.5", {"a": -0.5}),
        ("a: 2024-05-01", {"a": "2024-05-01"}),  # YAML 1.1 would make a date of it
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: {<<: {b: 1}, b: 2}", {"a": {"b": 2}}),
        ("o: {i: &x {key: 1, <<: {key: 2}}}\nb: {<<: *x}", {"o": {"i": {"key": 1}}, "b": {"key": 1}}),
        ("\ufeffa: b", {"a": "b"}),
        ("", None),
    ],
)
def test_plain_values_are_read(text: str, value: object) -> None:
    assert load_yaml(text) == value


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int abc", "'abc' is no number"),
        ("a: 0x_", "'0x_' is no number"),
        ("a: !!float x", "'x' is no number"),
        ("a: !!bool maybe", "neither true nor false"),
        ("a: !!timestamp 2024-13-45", "constructor for the tag"),
        ("a: !!binary '!'", "constructor for the tag"),
        ("a: !!python/object/apply:os.getcwd []", "constructor for the tag"),
        ("a: !!set {b}", "constructor for the tag"),
        ("a: 1:30", "another number in YAML 1.1"),
        ("a: 010", "another number in YAML 1.1"),
        ("a: 1_000", "'1_000' is a number in YAML 1.1 and a text in 1.2; write 1000, or put it in quotes"),
        ("a: -1_0_0_", "is a number in YAML 1.1 and a text in 1.2; write decimal digits alone"),
        ("a: 0b101", "'0b101' is a number in YAML 1.1 and a text in 1.2; write decimal digits alone"),
        ("a: 1_0.5", "is a number in YAML 1.1 and a text in 1.2"),
        ("a: 0x_1f", "is a number in YAML 1.1 and a text in 1.2"),
        ("a: 1\nb: c\x1bd", r"'\\x1b' stands there, and special characters are not allowed\n  in line 2, column 5"),
        ("a: " + 5000 * "9", "a number of 5,000 characters"),
        ("a: 0x" + 5000 * "f", "a number of 5,002 characters"),
        ("? {a: b}\n: c", "the key is no text"),
        ("? [a]\n: c", "the key is no text"),
        ("1: c", "the key '1' is no text"),
        ("on: c", "the key 'on' is no text"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("a: 1\n'a': 2", "'a' is given twice"),
        (10_000 * "[", "more than 30 deep"),
        (40 * "{a: ", "more than 30 deep"),
        ("\n".join(f"a{n}: &a{n} [[[[[[[[[[*a{n - 1}]]]]]]]]]]" for n in range(1, 9)), "undefined alias"),
        (
            "a0: &a0 1\n" + "\n".join(f"a{n}: &a{n} {10 * '['}*a{n - 1}{10 * ']'}" for n in range(1, 9)),
            "in one another",
        ),
        ("a: &a [*a]", "the anchor 'a' contains itself"),
        ("a: &a {<<: *a}", "the anchor 'a' contains itself"),
        (LAUGHS, "aliases counted"),
        ("a: {<<: 3}", "for merging"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("a: \0", "special characters are not allowed"),
        ("a: \x1b[2J", "special characters are not allowed"),
        ('a: "\\0"', "control character"),
        ('a: "\\e[2J"', "control character"),
        ('a: "\\ud800"', "no UTF-8"),
        ('a: "\\U00110000"', "chr"),
        ("\ta: 1", "cannot start any token"),
        ("%YAML 9.9\n---\na: 1", "version"),
        ("[" + MOST_NODES * "1," + "]", "values"),
        ("# " + 3_000_000 * "x", "more than the"),
    ],
)
def test_anything_else_is_an_error_soon(text: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load_yaml(text)
    assert type(caught.value) is NoYaml
    assert time.monotonic() - began < 60  # MOST_NODES values take 12 s on a slow machine
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["2024-05-01", "1:30", "010", "1e-4", "null", "yes", "a #b", "ä", "'", "x\ny"])
def test_what_is_dumped_is_read_back(text: str) -> None:
    assert load_yaml(dump_yaml({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3 # three", True), ("3", False), ("'a # b'", False), ("[1, # one\n 2]", True), ("a#b", False), ("# x", True)],
)
def test_a_comment_is_seen(text: str, expected: bool) -> None:
    assert has_comment(text) is expected


def test_only_a_regular_file_of_sensible_size_in_utf8_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(2**21 + 1))
    (tmp_path / "wide").write_text("a: 1", encoding="utf-16")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (
        ("pipe", "is a pipe"), ("", "is a folder"), ("large", "more than"), ("wide", "not UTF-8"),
        ("loop", "symbolic links"), ("n" * 300, "too long"), ("absent", "No such file"), ("a\0b", "NUL"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_text(tmp_path / name)


def test_a_long_list_takes_the_time_that_pyyaml_takes() -> None:
    """The bounds cost little: PyYAML's own reader is the reference."""
    text = "[" + 20_000 * "1, " + "]"
    times = []
    for load in (lambda: yaml.safe_load(text), lambda: load_yaml(text)):
        began = time.process_time()
        load()
        times.append(time.process_time() - began)
    assert times[1] < 3 * times[0]  # 1.2 times, as measured
