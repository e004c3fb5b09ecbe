"""What transformers finds in its model files is found in one file by the next process, and is the same."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from artkv.transformers_index import Index, _kept, kept_index

_COUNTS = """
    import json, sys
    opened = 0

    def count(event, arguments):
        global opened
        opened += event == "open" and "/transformers/models/" in str(arguments[0]) and str(arguments[0]).endswith(".py")

    sys.addaudithook(count)
    from artkv.heavy_imports import heavy_imports

    with heavy_imports():
        import transformers
        from transformers import Blip2ForConditionalGeneration, OPTForCausalLM
        import transformers.models.opt
    while_importing = opened
    from transformers.utils import import_utils

    define = import_utils.define_import_structure
    assert define.__module__ == import_utils.__name__, define
    assert not any(type(finder).__module__.startswith("artkv") for finder in sys.meta_path)
    assert "exec_module" not in vars(import_utils.__loader__)
    fresh = define(transformers.__path__[0] + "/models")
    print(json.dumps({
        "opened": while_importing,
        "index": [[sorted(key), {name: sorted(names) for name, names in fresh[key].items()}] for key in fresh],
        "lazy": sorted(transformers._class_to_module.items()),
    }))
"""


def imported(cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_COUNTS)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_second_process_reads_one_file_and_knows_the_same(tmp_path: Path) -> None:
    """As a count, and not as a time."""
    first, second = imported(tmp_path), imported(tmp_path)
    assert 1000 < first["opened"] < 4000  # read once, where transformers alone reads them twice
    assert second["opened"] < 60  # those that are imported, or have an index of their own
    assert first["lazy"] == second["lazy"]
    (kept,) = (tmp_path / "artkv/transformers_index").iterdir()
    entries = json.loads(kept.read_text())["index"]
    assert {frozenset(key): value for key, value in entries} == {frozenset(key): v for key, v in second["index"]}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models in an installation of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = tmp_path / "site/transformers/models"
    models.mkdir(parents=True)
    record = tmp_path / "site/transformers-5.0.dist-info/RECORD"
    record.parent.mkdir()
    record.write_text("transformers/__init__.py,,\n")
    return models


class Reads:
    """Stands for transformers' function; another answer each time."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, models: Path) -> Index:
        self.times += 1
        return {frozenset(): {"opt": {f"OPT{self.times}"}}, frozenset({"torch", "vision"}): {"blip": {"B", "A"}}}


def test_it_is_read_anew_for_another_installation_and_where_the_file_is_damaged(models: Path) -> None:
    reads = Reads()
    assert _kept(reads, models) == _kept(reads, models)
    assert reads.times == 1
    (record,) = models.parents[1].glob("*.dist-info/RECORD")
    record.write_text("transformers/__init__.py,,\ntransformers/models/new.py,,\n")
    assert _kept(reads, models)[frozenset()] == {"opt": {"OPT2"}}
    (file,) = (models.parents[2] / "cache/artkv/transformers_index").iterdir()
    for damaged in ("", '{"key": ', "[1]", '{"index": []}', "\0\0"):
        file.write_text(damaged)
        before = reads.times
        assert _kept(reads, models)[frozenset()] == {"opt": {f"OPT{before + 1}"}}
    without_pairs = json.loads(file.read_text()) | {"index": [1]}
    file.write_text(json.dumps(without_pairs))
    assert _kept(reads, models) == _kept(reads, models)


def test_a_checkout_and_a_cache_that_cannot_be_written_are_read_as_ever(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert _kept(reads, models) != _kept(reads, models)
    monkeypatch.setenv("XDG_CACHE_HOME", str(models.parents[2] / "cache"))
    (record,) = models.parents[1].glob("*.dist-info/RECORD")
    record.unlink()
    assert _kept(reads, models) != _kept(reads, models)
    assert not (models.parents[2] / "cache").exists()


def test_where_it_is_imported_already_nothing_is_touched() -> None:
    import transformers  # noqa: F401

    before = list(sys.meta_path)
    with kept_index():
        assert sys.meta_path == before
