"""metrics.jsonl: whole lines while it is written, and cut back to the resumed step."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from artkv.monitoring.metrics_log import MetricsLog


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_each_line_can_be_read_before_the_file_is_closed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    before = time.time()
    log.append(10, "train", {"loss": 1.5, "skipped_steps": 0})
    log.append(10, "validation", {"exact_match": 0.25})
    first, second = read(tmp_path / "run" / "metrics.jsonl")
    assert before <= first.pop("time") <= time.time()
    assert first == {"step": 10, "kind": "train", "loss": 1.5, "skipped_steps": 0}
    assert (second["step"], second["kind"], second["exact_match"]) == (10, "validation", 0.25)
    log.close()


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, "train", {"loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 1e-4})
    log.close()
    (record,) = read(tmp_path / "metrics.jsonl")
    assert record["loss"] is None
    assert record["grad_norm"] is None
    assert record["learning_rate"] == 1e-4


def test_metrics_cannot_overwrite_what_each_record_has(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="step"):
        log.append(1, "train", {"step": 3})
    log.close()


def test_truncation_drops_later_steps_and_keeps_the_rest_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (0, 10, 20, 30):
        log.append(step, "train", {"loss": 1 / (step + 1)})
    log.append(20, "validation", {"exact_match": 0.5})  # not in order of steps
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    log = MetricsLog(path)
    assert log.truncate_after(20) == 1
    assert path.read_bytes() == b"".join(lines[:3] + lines[4:])
    log.append(21, "train", {"loss": 0.0})  # goes on in the new file, not in the replaced one
    log.close()
    assert [record["step"] for record in read(path)] == [0, 10, 20, 20, 21]
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_last_line_is_dropped_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, "train", {"loss": 1.0})
    log.close()
    path.write_bytes(path.read_bytes() + b'{"step": 2, "time": 17')
    log = MetricsLog(path)
    log.append(2, "train", {"loss": 0.5})
    log.close()
    assert [record["loss"] for record in read(path)] == [1.0, 0.5]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00\n", b'{"step": 2, "ti\n', b"[1]\n", b'{"loss": 1.0}\n', b"3\n"])
def test_damaged_lines_are_dropped_on_resume(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, "train", {"loss": 1.0})
    log.close()
    path.write_bytes(damage + path.read_bytes() + damage)
    log = MetricsLog(path)
    assert log.truncate_after(5) == 2
    log.close()
    assert [record["step"] for record in read(path)] == [1]


def test_a_crash_while_truncating_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, "train", {"loss": 1.0})
    log.append(2, "train", {"loss": 1.0})
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        log.truncate_after(1)
    assert path.read_bytes() == before
