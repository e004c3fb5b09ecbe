"""A large table is checked once, and again as soon as anything that its checks depend on has changed."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artkv.config.paths import user_cache
from artkv.datasets import checked_tables, kept_tables, member_index
from artkv.datasets.checked_tables import read_checked_tables
from artkv.datasets.table import QuestionTable, read_table
from artkv.datasets.table_form import PLAIN, TableForm
from artkv.distributed import World, single_process
from artkv.errors import UserError
from tests.datasets.test_tar_members import write_tar

NAMES = ["a.png", "b.png", "sub/c.png"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, and a table that is not too small to be kept; all of them a minute old."""
    monkeypatch.setattr(kept_tables, "FEWEST_ROWS", 4)
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    rows = [f'{name},"What is {number}, é?",thing,id{number},sort{number % 2}' for number, name in enumerate(NAMES * 2)]
    (tmp_path / "train.csv").write_text("\n".join(["image,question,answer,question_id,question_type", *rows, ""]))
    (tmp_path / "shards").mkdir()
    members = {name: (tmp_path / "images" / name).read_bytes() for name in NAMES}
    write_tar(tmp_path / "shards/0.tar", members)
    wait(monkeypatch)
    return tmp_path


def wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(member_index.time, "time_ns", lambda: now + 60 * 10**9)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The tables that were read and checked, not taken from the cache."""
    checked: list[Path] = []
    check = checked_tables.check_rows

    def counted(path: Path, *args: object) -> object:
        checked.append(path)
        return check(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(checked_tables, "check_rows", counted)
    return checked


def read(folder: Path, root: str = "images", form: TableForm = PLAIN, max_pixels: int = 10**6) -> QuestionTable:
    (table,) = read_checked_tables(
        [folder / "train.csv"], folder / root, single_process(torch.device("cpu")), max_pixels=max_pixels, form=form
    )
    return table


def texts(table: QuestionTable) -> list[list]:
    columns = (table.questions, table.answers, table.question_ids, table.question_types, table.painting_paths)
    return [*map(list, columns), table.line_numbers.tolist(), table.painting_of_row.tolist()]


@pytest.mark.parametrize("root", ["images", "shards"])
def test_the_second_start_has_the_same_table_without_a_check(folder: Path, checks: list[Path], root: str) -> None:
    first = read(folder, root)
    assert len(checks) == 1
    second = read(folder, root)
    assert len(checks) == 1
    assert (
        texts(second)
        == texts(first)
        == texts(read_table(folder / "train.csv", checked_tables.ImageIndex(folder / root)))
    )
    assert second.place(1) == f"{folder / 'train.csv'}:3"


def _answer(folder: Path) -> None:
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("thing", "thinh", 1))


def _picture(folder: Path) -> None:
    status = os.stat(folder / "images/b.png")
    content = bytearray((folder / "images/b.png").read_bytes())
    content[-1] ^= 1
    (folder / "images/b.png").write_bytes(content)
    os.utime(folder / "images/b.png", ns=(status.st_atime_ns, status.st_mtime_ns))  # as a tool may that copies


def _another_of_the_name(folder: Path) -> None:
    (folder / "images/other").mkdir()
    shutil.copy(folder / "images/a.png", folder / "images/other/c.png")


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (_answer, {}), (_picture, {}), (_another_of_the_name, {}), (_nothing, {"form": TableForm(limit=2)}),
        (_nothing, {"form": TableForm(columns={"question_type": None})}), (_nothing, {"max_pixels": 10**5}),
        (_nothing, {"root": "shards"}),
    ],
)  # fmt: skip
def test_whatever_changes_is_checked_again(
    folder: Path, checks: list[Path], change: Callable[[Path], None], settings: dict
) -> None:
    read(folder)
    change(folder)
    read(folder, **settings)
    assert len(checks) == 2


def test_a_table_that_another_run_has_mapped_stays(
    folder: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in (user_cache() / "tables").glob("*/*/*")}

    read(folder)
    first = files()
    for name in NAMES:
        (folder / "images" / name).touch()
    wait(monkeypatch)
    read(folder)
    read(folder, form=TableForm(limit=2))
    assert len(checks) == 3
    assert first.items() < files().items()
    read(folder)
    assert len(checks) == 3


def test_a_picture_that_is_damaged_later_is_told(folder: Path) -> None:
    read(folder)
    (folder / "images/b.png").write_bytes((folder / "images/b.png").read_bytes()[:30])
    with pytest.raises(UserError, match=r"train\.csv:3: picture .*b\.png: not a picture"):
        read(folder)


def test_a_picture_that_is_gone_later_is_told(folder: Path) -> None:
    read(folder)
    (folder / "images/b.png").unlink()
    with pytest.raises(UserError, match=r"train\.csv:3: picture 'b\.png' is missing"):
        read(folder)


def test_a_table_that_is_gone_later_is_told(folder: Path) -> None:
    read(folder)
    (folder / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv: cannot be read"):
        read(folder)


def test_a_damaged_file_of_the_cache_is_made_anew(folder: Path, checks: list[Path]) -> None:
    wanted = texts(read(folder))
    kept = max((user_cache() / "tables").glob("*/*/*"), key=lambda path: path.stat().st_size)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert texts(read(folder)) == wanted
    assert len(checks) == 2
    read(folder)
    assert len(checks) == 2


def test_small_wrong_and_young_ones_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tables, "FEWEST_ROWS", 7)
    read(folder)
    monkeypatch.setattr(kept_tables, "FEWEST_ROWS", 4)
    monkeypatch.setattr(member_index.time, "time_ns", lambda: os.stat(folder / "images/a.png").st_ctime_ns + 10**9)
    read(folder)
    wait(monkeypatch)
    (folder / "images/b.png").write_bytes(b"GIF89a")
    with pytest.raises(UserError):
        read(folder)
    assert not list((user_cache() / "tables").glob("*/*/*"))


@pytest.mark.parametrize("is_same", [True, False])
def test_ranks_keep_it_where_they_saw_the_same_pictures(
    folder: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    class Ranks(World):
        def together(self, action: Callable) -> object:  # type: ignore[override]
            return action()

        def gather(self, value: object) -> list:  # type: ignore[override]
            if isinstance(value, list):
                return [value, []]  # problems
            return [value, value if is_same else np.random.default_rng(0).bytes(32)]

    world = Ranks(0, 0, 2, single_process(torch.device("cpu")).device)
    read_checked_tables([folder / "train.csv"], folder / "images", world)
    assert bool(list((user_cache() / "tables").glob("*/*/*"))) == is_same
