"""Names of files tell splits, and a single table's paintings are shared out."""

from pathlib import Path

import pytest

from artkv.datasets.table_form import PLAIN
from artkv.errors import UserError
from artkv.starting.splits import by_split, share_out, split_of
from artkv.starting.tables import Table


def table(path: str) -> Table:
    return Table(Path(path), (), PLAIN, True)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("d/artquest_train.csv", "train"), ("d/TRAIN.csv", "train"), ("d/my-validation-2.csv", "val"),
        ("d/dev.json", "val"), ("val/questions.csv", "val"), ("d/latest.csv", None), ("d/trainer.csv", None),
        ("d/train_test.csv", None), ("test/train.csv", "train"),
    ],
)  # fmt: skip
def test_a_name_tells_the_split(path: str, split: str | None) -> None:
    assert split_of(Path(path)) == split


def test_tables_are_splits_and_what_is_ambiguous_is_told() -> None:
    assert list(by_split([table("train.csv")])) == ["all"]
    assert list(by_split([table("d/test.csv"), table("d/train.csv"), table("d/other.csv")])) == ["train", "test"]
    with pytest.raises(UserError, match=r"d/train\.csv and e/train\.json: both are train by their names; give the"):
        by_split([table("d/train.csv"), table("e/train.json"), table("d/val.csv")])
    with pytest.raises(UserError, match=r"2 tables of questions \(a\.csv, b\.csv\), and none is to train on"):
        by_split([table("d/a.csv"), table("d/b.csv")])


def test_each_split_gets_its_share_and_a_painting_one_split(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(50)]
    for picture in pictures:
        picture.write_text(picture.name)
    split_of_picture = share_out(pictures, tmp_path, 3)
    counts = {split: list(split_of_picture.values()).count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 40, "val": 5, "test": 5}
    assert share_out(pictures[::-1], tmp_path, 3) == split_of_picture
    assert share_out(pictures, tmp_path, 4) != split_of_picture
    assert sorted(share_out(pictures[:3], tmp_path, 3).values()) == ["test", "train", "val"]
    for picture in pictures[:48]:
        picture.write_text("one and the same")
    assert len({split_of for path, split_of in share_out(pictures, tmp_path, 3).items() if path in pictures[:48]}) == 1
    with pytest.raises(UserError, match="the questions are on 1 painting, and a painting belongs to one split alone"):
        share_out(pictures[:48], tmp_path, 3)
