"""Trackio's own database, read back with SQLite: curves, config and pictures; in a process of its own.

Trackio reads TRACKIO_DIR when it is imported.
"""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")

TWO_STARTS = """
import sys
sys.path = {path!r}
from pathlib import Path
from artkv.monitoring.run_log import RunLog
from tests.monitoring.test_trackers import whole_run
folder = Path(sys.argv[1])
whole_run(folder, ("trackio",))
log = RunLog(folder, rank=0, total_steps=4, resume_step=2, trackers=("trackio",))
log.config("run: {{output_dir: x}}\\n")
log.train(3, {{"loss": 0.125}})
log.close()
"""


def tables(folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Run, step and values of all that was logged."""
    (database,) = [path for path in folder.glob("*.db") if path.stem.startswith("artkv")]
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    return [(run, step, json.loads(metrics)) for run, step, metrics in rows]


def test_curves_config_and_pictures_are_in_its_database(tmp_path: Path) -> None:
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    code = TWO_STARTS.format(path=sys.path)
    command = [sys.executable, "-c", code, str(tmp_path / "my run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr, done.stderr
    assert done.stdout == ""
    rows = tables(tmp_path / "trackio")
    (name,) = {run for run, _, _ in rows}  # the resumed start's too
    assert name.startswith("my run-")
    losses = {step: values["train/loss"] for _, step, values in rows if "train/loss" in values}
    assert losses == {1: 0.5, 2: 0.25, 3: 0.125}
    seen = {(step, key): value for _, step, values in rows for key, value in values.items()}
    assert seen[1, "validation/exact_match"] == 0.75
    assert seen[1, "works/0"]["_type"] == "trackio.image"
    assert seen[1, "attention/mass_of_heads"]["_type"] == "trackio.histogram"
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 2
    (database,) = [path for path in (tmp_path / "trackio").glob("*.db") if path.stem.startswith("artkv")]
    with sqlite3.connect(database) as connection:
        configs = [json.loads(text) for (text,) in connection.execute("select config from configs")]
    assert configs[0]["run"] == {"output_dir": "x"}
