"""The museum's benchmark starts from every form of pictures, and finds the first start's work at the second."""

from pathlib import Path

from tests.benchmarks.conftest import run_script


def test_the_museum_is_made_and_started_from_in_all_forms(tmp_path: Path) -> None:
    folder = tmp_path / "museum"
    sizes = ("--questions", "60000", "--paintings", "300", "--batches", "10")
    done = run_script("museum.py", "--folder", str(folder), *sizes, timeout=600)
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        [form, start] for form in ("folder", "tars", "arrow") for start in ("first", "second")
    ]
    for row in rows:
        measured = dict(zip(head, row, strict=True))
        parts = [float(measured[name]) for name in ("table, s", "hash, s", "tokens, s", "plan, s", "first batch, s")]
        assert abs(sum(parts) - float(measured["all, s"])) < 0.1  # each is rounded
        assert float(measured["questions/s"].replace(",", "")) > 0
    for cache in folder.glob("cache-*"):
        assert {path.parent.parent.name for path in cache.glob("*/*/*.arrays")} >= {"tables", "tokens"}
    assert (folder / "train.csv").read_text().count("\n") == 60001
    assert (folder / "small.csv").read_text().count("\n") == 601
