"""The museum's benchmark makes the same pictures in all its forms, and tells what two starts from one of them cost."""

from pathlib import Path
from typing import Any

from artkv.datasets.image_index import ImageIndex
from artkv.datasets.picture_files import open_picture_file
from tests.benchmarks.conftest import run_script


def test_the_museum_is_made_and_started_from(tmp_path: Path, module: Any) -> None:
    folder = tmp_path / "museum"
    sizes = ("--questions", "2000", "--paintings", "200", "--batches", "10", "--forms", "arrow")
    done = run_script("museum.py", "--folder", str(folder), *sizes, timeout=300)
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["arrow", "first"], ["arrow", "second"]]
    for row in rows:
        measured = {name: float(value.replace(",", "")) for name, value in zip(head[2:], row[2:], strict=True)}
        parts = ("table, s", "hash, s", "tokens, s", "plan, s", "first batch, s")
        assert abs(sum(measured[name] for name in parts) - measured["all, s"]) < 0.1  # each is rounded
        assert measured["questions/s"] > 0
    assert (folder / "train.csv").read_text().count("\n") == 2001
    assert (folder / "small.csv").read_text().count("\n") == 21
    contents = set()
    for root in module("museum").ROOTS.values():
        images = ImageIndex(folder / root)
        assert len(images) == 200
        with open_picture_file(images.find("0000199.jpg")) as opened:
            contents.add(opened.file.read())
    assert len(contents) == 1
