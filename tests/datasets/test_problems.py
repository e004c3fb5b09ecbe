"""Of many problems the first are told, the others counted by kind, and all of them listed in a file."""

from pathlib import Path

import pytest

from artkv.datasets.problems import Problem, format_problems, kind_of, quoted


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def problems(number: int, message: str) -> list[Problem]:
    return [Problem(Path("a.csv"), line, message.format(line=line)) for line in range(number)]


def test_fifty_are_told_and_no_file_is_written(tmp_path: Path) -> None:
    assert len(format_problems(problems(50, "empty answer; fill it in")).splitlines()) == 50
    assert list(tmp_path.iterdir()) == []


def test_the_others_are_counted_by_kind_and_all_are_listed(tmp_path: Path) -> None:
    many = problems(3050, "empty answer; fill it in") + problems(912, "picture 'it\\'s {line}.jpg' is missing: no; add")
    *_, last = format_problems(many).splitlines()
    (folder,) = tmp_path.iterdir()
    assert last == (
        f"and 3,912 more: 3,000 x empty answer, 912 x picture: no; all 3,962 are listed in {folder}/problems.txt"
    )
    assert (folder / "problems.txt").read_text().splitlines() == [str(problem) for problem in many]


def test_a_full_disk_hides_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    told = format_problems(problems(60, "empty answer; fill it in"))
    assert told.endswith("and 10 more: 10 x empty answer; no list of all could be written (No space left on device)")
    assert "no list" not in format_problems(problems(60, "empty answer; fill it in"), keeps_all=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("picture /a/b c.png: damaged (x: y); replace", "picture /d.jpg: damaged (z (9)); replace"),
        ("the row has 3 fields, the header 5; put", "the row has 12 fields, the header 5; put"),
        ("byte 0xE9 at column 3 is not UTF-8; save", "byte 0x80 at column 33 is not UTF-8; save"),
        ("question_id 'a' was used in line 3; give", 'question_id "it\'s" was used in line 1,000; give'),
    ],
)
def test_what_is_alike_is_of_one_kind(one: str, other: str) -> None:
    assert kind_of(one) == kind_of(other) != kind_of("empty answer; fill it in")


def test_a_cell_in_a_message_does_nothing_and_is_short() -> None:
    assert quoted("a\x1b[31m\u202e\n") == "'a\\x1b[31m\\u202e\\n'"
    assert quoted("x" * 1000) == "'" + "x" * 200 + "'... (1,000 characters)"
    assert str(Problem(Path("a\x1b.csv"), 3, "empty answer")) == "a\\x1b.csv:3: empty answer"
