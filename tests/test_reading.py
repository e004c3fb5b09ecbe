"""What others wrote is read within bounds, and becomes a typed record or one message."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.reading import is_blank, parse_json, read_regular, to_record, unseen_character
from artkv.run_folder.state import Progress


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_regular(path, 10) == b"0123456789"
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 10) == b"0123456789"


def test_a_larger_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it would not fit into memory
    with pytest.raises(OSError) as caught:
        read_regular(path)
    assert caught.value.strerror == "has 1,099,511,627,776 bytes, more than the 16,777,216 that belong there"


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(OSError) as caught:
            read_regular(path)
        assert caught.value.strerror == f"is {kind}, where a regular file belongs"


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[" * 100_000, "1" * 5000, "{", "", "\xff", '{"a" 1}', "\0"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    with pytest.raises(ValueError):
        parse_json(text.encode("latin-1"))


@dataclass(frozen=True)
class Nested:
    progress: Progress
    sizes: dict[str, int]


def test_a_record_comes_back_as_it_was() -> None:
    nested = Nested(Progress(step=3, best_exact_match=0.5, best_step=3), {"a": 1})
    assert to_record(Nested, asdict(nested), "file", "do this") == nested


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "step = '3': Input should be a valid integer"),
        ({"step": True}, "step = True: "),
        ({"step": 3.0}, "step = 3.0: "),
        ({"step": None}, "step = None: "),
        ({"best_exact_match": float("nan")}, "best_exact_match = nan: "),
        ({"validation_due": 1}, "validation_due = 1: "),
        ({"steps": 3}, "has 'steps', which is unknown"),
    ],
)
def test_what_is_of_another_type_is_told_by_its_name(change: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        to_record(Progress, asdict(Progress()) | change, "file", "do this")
    assert str(caught.value).startswith(f"file: {message}")
    assert str(caught.value).endswith("; do this")


def test_what_is_missing_is_not_guessed() -> None:
    tree = asdict(Progress())
    del tree["epoch"], tree["skipped_steps"]
    with pytest.raises(UserError, match="^file: lacks epoch, skipped_steps; do this$"):
        to_record(Progress, tree, "file", "do this")
    with pytest.raises(UserError, match="^file: holds list where an object belongs; do this$"):
        to_record(Progress, [], "file", "do this")


def test_what_cannot_be_seen_is_told_by_its_code_point() -> None:
    assert unseen_character("train\u200bing") == "U+200B (ZERO WIDTH SPACE)"
    assert unseen_character("a\xa0b") == "U+00A0 (NO-BREAK SPACE)"
    assert unseen_character("Jan van Eyck, 茶, naïve\t\n") is None
    assert is_blank("\u200b \u2060\u3164\n")
    assert is_blank("")
    assert not is_blank("\u200b0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'{"a\ud800": 1}', r"line 1 has \ud800, which is half of a character"),
        ('{\n"a": "\\uDC00\\ud83d"}', r"line 2 has \uDC00, which is half of a character"),
        (r'{"a": "\\\ud83d"}', r"line 1 has \ud83d"),
        ('{"a": ' + 5000 * "1" + "}", "the number 11111111111111111111... has 5,000 digits"),
    ],
)
def test_what_a_person_wrote_is_of_whole_characters_and_numbers(text: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_json(text, once=True)
    assert message in str(raised.value)


def test_a_pair_that_is_one_character_is_read() -> None:
    assert parse_json(r'{"a": "\ud83c\udfa8 \\ud800"}', once=True) == {"a": "\U0001f3a8 \\ud800"}
