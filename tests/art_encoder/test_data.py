"""Which pictures of which styles are trained on, in which order, and what is wrong with them."""

import os
from collections import Counter
from pathlib import Path

import pytest

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.data import check_pictures, read_style_data
from artkv.art_encoder.training import train_art_encoder
from artkv.errors import UserError
from tests.art_encoder.conftest import FAST, write_styles


def test_csv_and_folders_give_the_same_data(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "styles.csv"
    rows = [f"x,{path.relative_to(folders)},{path.parent.name}" for path in sorted(folders.rglob("*.png"))]
    table.write_text("artist,image,style\n" + "\n".join(rows) + "\n")
    from_csv = read_style_data(table, folders, None, 0.2, 7)
    from_folders = read_style_data(folders, None, None, 0.2, 7)
    assert from_csv.digest() == from_folders.digest()
    assert Counter(picture.labels for picture in from_csv.validation) == {("columns",): 3, ("rows",): 3}
    assert not {picture.name for picture in from_csv.validation} & {picture.name for picture in from_csv.training}
    assert from_csv.digest() != read_style_data(table, folders, None, 0.2, 8).digest()

    settings = ArtEncoderSettings(**FAST, data=table, image_root=folders, output_dir=tmp_path / "out", epochs=1)
    assert sum(score.count for score in train_art_encoder(settings).scores.heads[0].per_class) == 4


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
        f"  {table}:6: the row has 2 fields, the header 3; add the fields that are missing, or put double quotes "
        "around a text that holds a line break",
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


def write_labels(folder: Path, rows: list[str], header: str = "image,style,genre,artist") -> Path:
    """A CSV of labels for the pictures of `folders`."""
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "labels.csv"


ROWS = [
    *(f"rows/{n}.png,rows,{'portrait' if n % 2 else ''},{'Ann' if n < 4 else 'Bob'}" for n in range(8)),
    *(f"columns/{n}.png,columns,landscape,{'Eve' if n == 3 else ''}" for n in range(8)),
    "rows/8.png,,portrait,Ann",
]


def test_several_heads_of_which_rows_lack_some(folders: Path, tmp_path: Path) -> None:
    table = write_labels(tmp_path, ROWS)
    data = read_style_data(table, folders, None, 0.5, 3, ("style", "genre", "artist"))
    assert [(head.name, head.classes) for head in data.heads] == [
        ("style", ("columns", "rows")),
        ("genre", ("landscape", "portrait")),
        ("artist", ("Ann", "Bob", "Eve")),
    ]
    labels = {picture.name: picture.labels for picture in data.training + data.validation}
    assert labels["rows/0.png"] == ("rows", None, "Ann")
    assert labels["rows/8.png"] == (None, "portrait", "Ann")
    # half of each style; the only Eve stays with the training, and so does the only one without a style
    assert Counter(picture.labels[0] for picture in data.validation) == {"columns": 4, "rows": 4}
    assert {"columns/3.png", "rows/8.png"} <= {picture.name for picture in data.training}
    for seed in range(8):
        training = read_style_data(table, folders, None, 0.5, seed, ("style", "genre", "artist")).training
        assert "columns/3.png" in {picture.name for picture in training}
    for number in range(3):
        trained = {picture.labels[number] for picture in data.training}
        assert {picture.labels[number] for picture in data.validation} <= trained

    found = read_style_data(table, folders, None, 0.5, 3, None)
    assert found == data
    alone = read_style_data(write_labels(tmp_path, [row for row in ROWS if ",," not in row]), folders, None, 0.5, 3)
    assert alone.is_of_styles_alone
    assert alone.digest() != data.digest()


@pytest.mark.parametrize(
    ("heads", "header", "row", "message"),
    [
        (("style", "genre"), "image,style,genre", "rows/0.png,,", ":2: empty style and genre; fill one in or remove"),
        (("style", "genre"), "image,style,genre", "rows/0.png,a,", "no row has a genre; leave genre out of --heads"),
        (
            ("style", "genre"),
            "image,style",
            "rows/0.png,a",
            ":1: missing column 'genre'; the header has 'image', 'style'",
        ),
        (("genre",), "image,genre", "rows/0.png,", ":2: empty genre; fill it in or remove the row"),
        (
            None,
            "image,school",
            "rows/0.png,a",
            ":1: none of the columns style, genre, artist; add one, or name --heads",
        ),
    ],
)
def test_heads_that_a_csv_has_not(
    heads: tuple[str, ...] | None, header: str, row: str, message: str, folders: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        read_style_data(write_labels(tmp_path, [row], header), folders, None, 0.5, 3, heads)
    assert message in str(error.value)


def test_heads_and_validation_that_do_not_fit(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--heads style, genre: .* is a folder, whose folders are styles alone; give"):
        read_style_data(folders, None, None, 0.1, 0, ("style", "genre"))
    table = write_labels(tmp_path, ROWS)
    (tmp_path / "other").mkdir()
    other = write_labels(tmp_path / "other", ["rows/9.png,rows,mural,", "rows/10.png,rows,,"])
    with pytest.raises(UserError, match=r"labels\.csv:2: rows/9\.png: the genre 'mural' does not occur in"):
        read_style_data(table, folders, other, 0.1, 0, ("style", "genre"))
    other = write_labels(tmp_path / "other", ["rows/10.png,rows,,"])
    with pytest.raises(UserError, match="no picture to validate on has a label in the column genre; label more"):
        read_style_data(table, folders, other, 0.1, 0, ("style", "genre"))
