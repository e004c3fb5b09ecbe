"""W&B's own file, read back with W&B's own records: curves, config and pictures, offline."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artkv.monitoring.run_log import RunLog
from tests.monitoring.test_trackers import whole_run

pytest.importorskip("wandb", reason="wandb is not installed")
_HEADER = 7  # of the file, and of each piece of a record in its blocks, which are LevelDB's
_BLOCK = 32768


@pytest.fixture(autouse=True)
def _nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandbs own"))


def records(path: Path) -> list[Any]:
    """The records of a run that has ended. W&B's own process writes them, a moment after `finish` has returned."""
    deadline = time.monotonic() + 20
    while not (found := list(written(path))) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, found[-1:]
        time.sleep(0.05)
    return found


def written(path: Path) -> Iterator[Any]:
    """The whole records that a `.wandb` file has."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, pieces = path.read_bytes(), _HEADER, b""
    while place + _HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _HEADER:  # too little is left of the block
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + _HEADER])
        pieces += content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def history(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged, in its order; of all starts of a run."""
    rows = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def test_curves_config_and_pictures_are_in_its_file(tmp_path: Path) -> None:
    whole_run(tmp_path / "my run", ("wandb",))
    rows = history(tmp_path / "my run")
    seen = {(row["step"], name): value for row in rows for name, value in row.items()}
    assert (seen[1, "train/loss"], seen[2, "train/loss"], seen[1, "validation/exact_match"]) == (0.5, 0.25, 0.75)
    assert seen[1, "works/0/_type"] == "image-file"
    assert seen[1, "attention/mass_of_heads/_type"] == "histogram"
    (path,) = (tmp_path / "my run").glob("wandb/offline-run-*/*.wandb")
    config = {
        item.key: json.loads(item.value_json)
        for record in records(path)
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
    assert config["run"] == {"output_dir": "x"}
    (run,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("artkv", "my run")
    (ended,) = [record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit"]
    assert ended == 0
    assert len(list(path.parent.glob("files/media/images/**/*.png"))) == 2


def test_a_resumed_run_is_the_same_run_and_loses_no_step(tmp_path: Path) -> None:
    for resume_step, steps in ((None, (10, 20, 30)), (20, (30, 40))):
        log = RunLog(tmp_path, rank=0, total_steps=40, resume_step=resume_step, trackers=("wandb",))
        for step in steps:
            log.train(step, {"loss": float(step)})
        log.close()
    paths = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in paths}) == 1  # run-NUMBER.wandb
    assert [row["step"] for row in history(tmp_path)] == [10, 20, 30, 30, 40]
    assert history(tmp_path)[-1]["train/loss"] == 40.0


def test_a_run_that_is_not_finished_has_failed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, rank=0, total_steps=40, trackers=("wandb",))
    log.train(1, {"loss": 1.0})
    log.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit"] == [1]
