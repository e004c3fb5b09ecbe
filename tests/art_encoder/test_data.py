"""Which pictures of which styles are trained on, in which order, and what is wrong with them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.data import BalancedBatches, check_pictures, read_style_data
from artkv.art_encoder.training import train_art_encoder
from artkv.errors import UserError
from tests.art_encoder.conftest import FAST, write_styles


def test_every_style_is_drawn_equally_often() -> None:
    styles = np.array([0] * 50 + [1] * 5 + [2] * 9)
    batches = BalancedBatches(styles, 8, balance=1.0, seed=3)
    order = batches.order()
    assert len(order) == 64 == 8 * len(batches)
    assert sorted(Counter(styles[order]).values()) == [21, 21, 22]
    drawn = Counter(order.tolist())
    assert max(drawn[index] for index in range(50)) == 1  # none again before all others have come
    assert {drawn[index] for index in range(50, 55)} <= {4, 5}
    assert len({seed for batch in batches for _, seed in batch}) == 64  # each draw has its own augmentation

    assert batches.order().tolist() == order.tolist()
    batches.epoch = 1
    assert batches.order().tolist() != order.tolist()
    natural = styles[BalancedBatches(styles, 8, balance=0.0, seed=3).order()]
    assert Counter(natural) == {0: 50, 1: 5, 2: 9}


def test_csv_and_folders_give_the_same_data(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "styles.csv"
    rows = [f"x,{path.relative_to(folders)},{path.parent.name}" for path in sorted(folders.rglob("*.png"))]
    table.write_text("artist,image,style\n" + "\n".join(rows) + "\n")
    from_csv = read_style_data(table, folders, None, 0.2, 7)
    from_folders = read_style_data(folders, None, None, 0.2, 7)
    assert from_csv.digest() == from_folders.digest()
    assert Counter(picture.style for picture in from_csv.validation) == {"columns": 3, "rows": 3}
    assert not {picture.name for picture in from_csv.validation} & {picture.name for picture in from_csv.training}
    assert from_csv.digest() != read_style_data(table, folders, None, 0.2, 8).digest()

    settings = ArtEncoderSettings(**FAST, data=table, image_root=folders, output_dir=tmp_path / "out", epochs=1)
    assert sum(score.count for score in train_art_encoder(settings).scores.per_style) == 4


def test_an_own_validation_set(folders: Path, tmp_path: Path) -> None:
    data = read_style_data(folders, None, write_styles(tmp_path, 2), 0.1, 0)
    assert (len(data.training), len(data.validation)) == (32, 4)


def test_all_problems_of_a_csv_come_at_once(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "styles.csv"
    table.write_text(
        'image,style,note\nrows/0.png,rows,"two\nlines"\nrows/1.png,,\n,rows,\nrows/2.png,rows\nrows/0.png,rows,\n'
        "columns/0.png,columns,\n"
    )
    validation = tmp_path / "val.csv"
    validation.write_text("image,style\nrows/0.png,rows\nrows/3.png,cubism\n")
    with pytest.raises(UserError) as error:
        read_style_data(table, folders, validation, 0.1, 0)
    assert str(error.value).splitlines()[1:] == [
        f"  {table}:4: empty style; fill it in or remove the row",
        f"  {table}:5: empty image; fill it in or remove the row",
        f"  {table}:6: the row has 2 fields, the header 3; put double quotes around a text that holds a comma",
        f"  {table}:7: 'rows/0.png' is named in line 2 already; keep one of them",
        f"  {validation}:2: rows/0.png is also a training picture; keep it in one set",
        f"  {validation}:3: rows/3.png: the style 'cubism' does not occur in {table}",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "picture,style\na.png,x\n",
            ":1: missing column 'image'; the header has 'picture', 'style'; it needs image,style",
        ),
        ("file,genre\na.png,x\n", ":1: missing columns 'image', 'style'; the header has"),
        ("", ":1: the file is empty; it needs a header image,style"),
        ("image,style\n", ":1: no rows below the header"),
        ("image,style\na.png,one\nb.png,one\n", "has only the style 'one'; a classifier needs at least 2"),
        ("image,style\na.png,one\nb.png,two\nc.png,two\n", ":2: a.png is the only picture of the style 'one'"),
    ],
)
def test_a_csv_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(content)
    with pytest.raises(UserError) as error:
        read_style_data(tmp_path / "styles.csv", None, None, 0.1, 0)
    assert message in str(error.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give a folder of style folders or a CSV"):
        read_style_data(tmp_path / "absent", None, None, 0.1, 0)
    with pytest.raises(UserError, match="holds no folders"):
        read_style_data(tmp_path, None, None, 0.1, 0)
    write_styles(tmp_path, 2)
    (tmp_path / "cubism").mkdir()
    with pytest.raises(UserError, match="the style 'cubism' has no pictures"):
        read_style_data(tmp_path, None, None, 0.1, 0)
    write_styles(tmp_path / "split", 2, ("train", "val"))
    with pytest.raises(UserError, match=r"train, val, which are no styles; .*--validation"):
        read_style_data(tmp_path / "split", None, None, 0.1, 0)


def test_whole_pictures_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_style_data(write_styles(tmp_path / "styles", 2), None, None, 0.1, 0)
    check_pictures(data.training, tmp_path / "memory")
    with monkeypatch.context() as patch:
        patch.setattr("artkv.art_encoder.data.picture_damage", lambda _: pytest.fail("decoded again"))
        check_pictures(data.training, tmp_path / "memory")
    data.training[0].path.write_text("changed since")
    with pytest.raises(UserError, match="not a picture"):
        check_pictures(data.training, tmp_path / "memory")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("/etc/passwd,rows", r"styles\.csv:2: picture '/etc/passwd' lies outside .*; give its path below that folder"),
        ("../a.png,rows", r"picture '\.\./a\.png' lies outside"),
        ("rows/0.png,\x1b[31m", r"is the only picture of the style '\\x1b\[31m'"),
        ('"rows/0.png,rows', r"styles\.csv:2: a double quote opened in this row is never closed"),
        ("rows/0.png,r\udcff", r"styles\.csv:2: byte 0xFF at column 13 is not UTF-8"),
    ],
)
def test_a_row_that_is_planted_or_broken_is_told(folders: Path, tmp_path: Path, row: str, message: str) -> None:
    text = f"image,style\n{row}\ncolumns/0.png,columns\ncolumns/1.png,columns\n"
    (tmp_path / "styles.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=message) as error:
        read_style_data(tmp_path / "styles.csv", folders, None, 0.1, 0)
    assert str(error.value).replace("\n", "").isprintable()


def test_pictures_that_no_file_system_holds_are_told(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(f"image,style\n{'x' * 300},one\n{'y' * 300},one\na,two\nb,two\n")
    data = read_style_data(tmp_path / "styles.csv", None, None, 0.1, 0)
    with pytest.raises(UserError, match=r"styles\.csv:[23]: picture .*: cannot be read \(File name too long\)"):
        check_pictures([*data.training, *data.validation], tmp_path / "memory")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match=r"pipe\.csv: cannot be read \(is a pipe"):
        read_style_data(tmp_path / "pipe.csv", None, None, 0.1, 0)


def test_many_problems_are_counted_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "styles.csv").write_text("image,style\n" + "a.png,\n" * 500)
    with pytest.raises(UserError) as error:
        read_style_data(tmp_path / "styles.csv", None, None, 0.1, 0)
    first, *_, last = str(error.value).splitlines()
    assert first == "the art encoder's data have 500 problems:"
    assert last.startswith("  and 450 more: 450 x empty style; all 500 are listed in ")
