"""A CSV file with every kind of damage, each named with its line, and what a right file reads as."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artkv.datasets.columns import StringColumn
from artkv.datasets.problems import Problem, format_problems
from artkv.datasets.table import ImageIndex, find_problems, read_table
from artkv.datasets.table_form import TableForm
from artkv.errors import UserError

HEADER = "image,question,answer,question_id,question_type\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "sub/b.jpg", "sub/twice.jpg", "other/twice.jpg", "é.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:1500])
    (folder / "page.jpg").write_text("<html></html>")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture
def images(root: Path) -> ImageIndex:
    return ImageIndex(root)


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_index_finds_by_path_and_by_bare_name(root: Path, images: ImageIndex) -> None:
    assert images.find("a.jpg") == root / "a.jpg"
    assert images.find("./a.jpg") == root / "a.jpg"
    assert images.find("b.jpg") == root / "sub/b.jpg"
    assert images.find("sub/b.jpg") == root / "sub/b.jpg"
    assert images.find("other/twice.jpg") == root / "other/twice.jpg"
    with pytest.raises(UserError, match=r"'twice\.jpg' is ambiguous: .*'other/twice\.jpg'.*give one of these"):
        images.find("twice.jpg")
    with pytest.raises(UserError, match=r"'A\.JPG' is missing.*did you mean 'a\.jpg'"):
        images.find("A.JPG")
    with pytest.raises(UserError, match=r"'e\u0301\.png' is missing.*did you mean 'é\.png'"):
        images.find("e\u0301.png")
    for name in ("nowhere.jpg", "../images/a.jpg", str(root / "a.jpg"), "sub"):
        with pytest.raises(UserError, match="is missing"):
            images.find(name)
    with pytest.raises(UserError, match="no such folder"):
        ImageIndex(root / "nowhere")


def test_an_exact_path_wins_over_a_bare_name(root: Path) -> None:
    (root / "twice.jpg").write_bytes((root / "a.jpg").read_bytes())
    assert ImageIndex(root).find("twice.jpg") == root / "twice.jpg"


def test_index_follows_linked_folders_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/c.jpg").write_bytes((root / "a.jpg").read_bytes())
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(root, root / "sub/round_and_round")
    index = ImageIndex(root)
    assert index.find("c.jpg") == root / "linked/c.jpg"
    assert index.find("b.jpg") == root / "sub/b.jpg"


def test_links_to_what_holds_the_pictures_are_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/c.jpg").write_bytes(b"")
    number = len(ImageIndex(root))
    os.symlink("/", root / "everything")
    os.symlink(tmp_path, root / "sub/parent")
    os.symlink("loop", root / "loop")
    (tmp_path / "linked").mkdir()
    os.symlink("/", tmp_path / "linked/everything")
    os.symlink(tmp_path / "linked", root / "other/linked")
    index = ImageIndex(root)
    assert len(index) == number + 1  # the loop, which is no folder
    with pytest.raises(UserError, match="is missing"):
        index.find("c.jpg")


def test_a_folder_that_cannot_be_listed_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir  # whoever runs this may be root, to whom nothing is forbidden

    def forbidding(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    index = ImageIndex(root)
    assert index.unreadable == [f"{root}/sub (Permission denied)"]
    with pytest.raises(UserError, match=r"'b\.jpg' is missing: .*\(not listed: .*/sub \(Permission denied\)\); add"):
        index.find("b.jpg")
    with pytest.raises(UserError, match=r"cannot be listed \(Permission denied\); give this user permission.*chmod"):
        ImageIndex(root / "sub")


def test_a_folder_of_too_many_files_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artkv.datasets.image_index._MOST_FILES", 3)
    with pytest.raises(UserError, match="holds more than 3 files; give the folder of the pictures alone"):
        ImageIndex(root)


@pytest.mark.parametrize("name", ["/etc/passwd", "../train.csv", "x" * 5000, "a\x1b[31m.jpg", ".", "", "sub/.."])
def test_a_name_that_leads_nowhere_is_told(images: ImageIndex, name: str) -> None:
    with pytest.raises(UserError, match="is missing: no such file under .*; ") as caught:
        images.find(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert ("below dataset.image_root, which must hold it" in str(caught.value)) == (
        name[:1] in ("/", ".") and len(name) > 1
    )


def test_reads_a_right_file(tmp_path: Path, root: Path, images: ImageIndex) -> None:
    text = (
        "\ufeff" + HEADER + "a.jpg,What?,NA,q1,title\r\n"
        'sub/b.jpg," How, ""so""? ",None,q2,\n'
        "\n"
        '"b.jpg","Two\nlines?",null,q3,style\n'
        "./a.jpg,Une œuvre?,nan,q4,style\n"
    )
    table = read_table(write(tmp_path, text), images)
    assert len(table) == 4
    assert list(table.questions) == ["What?", 'How, "so"?', "Two\nlines?", "Une œuvre?"]
    assert list(table.answers) == ["NA", "None", "null", "nan"]
    assert list(table.question_ids) == ["q1", "q2", "q3", "q4"]
    assert list(table.question_types) == ["title", "", "style", "style"]
    assert table.line_numbers.tolist() == [2, 3, 5, 7]
    assert table.painting_of_row.tolist() == [0, 1, 1, 0]
    assert list(table.painting_paths) == [root / "a.jpg", root / "sub/b.jpg"]
    assert table.num_paintings == 2
    assert table.place(3) == f"{tmp_path}/train.csv:7"


def test_optional_columns_and_column_order(tmp_path: Path, images: ImageIndex) -> None:
    path = write(tmp_path, "answer,note,question,image\noil,x,What?,a.jpg\ninfo,,Why?,a.jpg")
    table = read_table(path, images)
    assert list(table.answers) == ["oil", "info"]
    assert list(table.question_ids) == ["0", "1"]
    assert list(table.question_types) == ["", ""]


# (rows from line 2 on, the line of the problem, what its message holds). Each has a remedy after ';'.
DAMAGE = [
    ("nowhere.jpg,q,a,1,\n", 2, r"'nowhere\.jpg' is missing.*; add the picture"),
    ("twice.jpg,q,a,1,\n", 2, r"'twice\.jpg' is ambiguous.*; give one of these"),
    ("cut.jpg,q,a,1,\n", 2, r"cut\.jpg: damaged \(.*trunc.*\); replace"),
    ("page.jpg,q,a,1,\n", 2, r"page\.jpg: is a web page, and no picture.*; convert it to one, or replace"),
    ("empty.jpg,q,a,1,\n", 2, r"empty\.jpg: an empty file.*; replace"),
    ("a.jpg,,a,1,\n", 2, r"empty question; fill"),
    ("a.jpg,q,  ,1,\n", 2, r"empty answer; fill"),
    (",q,a,1,\n", 2, r"empty image; fill"),
    ("a.jpg,q,a,,\n", 2, r"empty question_id; fill"),
    ("a.jpg,q,a,1,\n\na.jpg,q,b,1,\n", 4, r"question_id '1' was used in line 2; give"),
    ("a.jpg,q,a,1\n", 2, r"4 fields, the header 5; add the fields that are missing"),
    ("a.jpg,who, and when?,a,1,\n", 2, r"6 fields, the header 5; put double quotes"),
    ('a.jpg,"q,a,1,\na.jpg,q,a,2,\n', 2, r"never closed; close it"),
    ('a.jpg,"q"x,a,1,\n', 2, r"follows a closing double quote; write"),
    ('a.jpg,q,"a\nb",1,\n', 2, r"answer 'a\\nb' holds a line break.*; put it on one line"),
    ("a.jpg,q\0,a,1,\n", 2, r"NUL byte; save"),
    (
        "a.jpg,q" + "x" * 200_000 + ",a,1,\n",
        2,
        r"a field of this row has 200,001 characters, of 100,000 at most; shorten",
    ),
]


def decoding_problems(path: Path, images: ImageIndex) -> set[Problem]:
    """What only decoding finds: a share that holds no picture does not find it."""
    return set(find_problems(path, images)) - set(find_problems(path, images, share=(10_000, 10_001)))


@pytest.mark.parametrize(("rows", "line", "message"), DAMAGE)
def test_each_kind_of_damage_by_itself(tmp_path: Path, images: ImageIndex, rows: str, line: int, message: str) -> None:
    path = write(tmp_path, HEADER + rows)
    problems = find_problems(path, images)
    assert len(problems) == 1, format_problems(problems)
    assert problems[0].line == line
    assert re.search(message, problems[0].message), problems[0].message
    assert str(problems[0]).startswith(f"{path}:{line}: ")
    if problems[0] not in decoding_problems(path, images):
        with pytest.raises(UserError, match=message):
            read_table(path, images)


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", 1, "the file is empty; it needs a header image,question,answer"),
        (b"\xef\xbb\xbf\n \n", 1, "the file is empty"),
        (b"image,question,answer\n", 1, "no rows below the header; add"),
        (
            b"img;question;reply\na.jpg;q;a\n",
            1,
            "missing columns 'image', 'answer'; the header has 'img', 'question', 'r",
        ),
        (b"\nimage,question\na.jpg,q\n", 2, "missing column 'answer'; the header has 'image', 'question'"),
        (b"image,question,answer,answer\na.jpg,q,a,b\n", 1, "column 'answer' appears 2 times; keep one"),
        (b"image,question,answer\na.jpg,caf\xe9,a\n", 2, r"byte 0xE9 at column 10 is not UTF-8; save.*iconv"),
        ("image,question,answer\na.jpg,q,a\n".encode("utf-16"), 1, "UTF-16; save it as UTF-8"),
    ],
)
def test_damage_of_the_file_itself(tmp_path: Path, images: ImageIndex, data: bytes, line: int, message: str) -> None:
    problems = find_problems(write(tmp_path, data), images)
    assert len(problems) == 1, format_problems(problems)
    assert problems[0].line == line
    assert re.search(message, problems[0].message), problems[0].message


def test_all_damage_in_one_file_is_named_with_its_line(tmp_path: Path, images: ImageIndex) -> None:
    lines = [
        (None, "image,question,answer,question_id,question_type,answer"),
        (None, "a.jpg,fine?,yes,1,,"),
        ("missing", "nowhere.jpg,q,a,2,,"),
        ("ambiguous", "twice.jpg,q,a,3,,"),
        ("damaged", "cut.jpg,q,a,4,,"),
        ("is a web page, and no picture", "page.jpg,q,a,5,,"),
        ("empty file", "empty.jpg,q,a,6,,"),
        ("empty question", "a.jpg,,a,7,,"),
        ("empty answer", "a.jpg,q,,8,,"),
        ("empty image", ",q,a,9,,"),
        (None, 'a.jpg,"two lines'),
        (None, 'are fine?",a,10,,'),
        ("line 2", "a.jpg,q,a,1,,"),
        ("5 fields", "a.jpg,q,a,11,"),
        ("closing double quote", 'a.jpg,"q" x,a,12,,'),
        ("UTF-8", "a.jpg,caf\udce9,a,13,,"),
        (None, "cut.jpg,again,a,14,,"),
        ("empty question_id", "a.jpg,q,a,,,"),
        ("never closed", 'a.jpg,"q,a,15,,'),
        ("8 fields", "a.jpg,q,a,16,,,,"),
    ]
    path = write(tmp_path, "\n".join(line for _, line in lines).encode("utf-8", "surrogateescape"))
    found = {problem.line: problem.message for problem in find_problems(path, images)}
    expected = {number: word for number, (word, _) in enumerate(lines, 1) if word} | {1: "appears 2 times"}
    assert sorted(found) == sorted(expected)
    for number, word in expected.items():
        assert word in found[number]
        assert "; " in found[number]
    assert "(also named in line 17)" in found[5]
    with pytest.raises(UserError) as error:
        read_table(path, images)
    assert str(error.value).count(f"{path}:") == len(expected) - 3
    assert {problem.line for problem in decoding_problems(path, images)} == {5, 6, 7}
    # Shared between ranks, each picture is decoded by one of them.
    shares = [set(find_problems(path, images, share=(rank, 3))) for rank in range(3)]
    assert set.union(*shares) == set(find_problems(path, images))
    assert {problem.line for problem in set.intersection(*shares)} == set(expected) - {5, 6, 7}


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


def test_long_lists_of_problems_are_cut_in_the_message_only(tmp_path: Path, images: ImageIndex) -> None:
    path = write(tmp_path, "image,question,answer\n" + "a.jpg,,x\n" * 60)
    assert len(find_problems(path, images)) == 60
    with pytest.raises(UserError) as error:
        read_table(path, images)
    *told, others = str(error.value).splitlines()
    assert len(told) == 50
    assert others.startswith("and 10 more: 10 x empty question; all 60 are listed in ")
    listed = Path(others.rsplit(" ", 1)[1])
    assert listed.read_text().splitlines()[:50] == told
    assert len(listed.read_text().splitlines()) == 60
    assert listed.parent.stat().st_mode & 0o777 == 0o700


def test_unreadable_file_is_named(tmp_path: Path, images: ImageIndex) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read.*; give an existing CSV"):
        find_problems(tmp_path / "gone.csv", images)


def test_string_columns_are_compact() -> None:
    texts = ["", "plain", "œuvre 画", "bytes \udcff"] * 1000
    column = StringColumn(texts)
    assert list(column) == texts
    assert len(column) == 4000
    # 8 bytes of offset a string beside its UTF-8 text; a list of str takes over 50.
    text_bytes = sum(len(text.encode("utf-8", "surrogateescape")) for text in texts)
    assert len(pickle.dumps(column)) < text_bytes + 8 * len(texts) + 1000
    for row in (-1, 4000):
        with pytest.raises(IndexError):
            column[row]


def test_a_limit_keeps_the_rows_of_the_first_paintings(tmp_path: Path, images: ImageIndex) -> None:
    rows = "".join(f"{name},q,a\n" for name in ("a.jpg", "b.jpg", "a.jpg", "none.jpg", "b.jpg"))
    path = write(tmp_path, f"image,question,answer\n{rows}")
    first = read_table(path, images, TableForm(limit=1))
    assert list(first.line_numbers) == [2, 4]
    two = read_table(path, images, TableForm(limit=2))
    assert list(two.line_numbers) == [2, 3, 4, 6]
    with pytest.raises(UserError, match=r"'none\.jpg' is missing"):
        read_table(path, images, TableForm(limit=3))
