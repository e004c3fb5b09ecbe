"""What a run left in its folder, for the tests that drive launchers."""

import json
from pathlib import Path
from typing import Any

from artkv.run_folder.heartbeat import Beat, read_beats


def final(output: Path) -> Path:
    """The newest checkpoint's folder."""
    return output / "checkpoints" / (output / "checkpoints" / "latest").read_text().strip()


def final_bytes(output: Path) -> bytes:
    return b"".join((final(output) / name).read_bytes() for name in ("adapter.safetensors", "optimizer.safetensors"))


def progress(output: Path) -> dict[str, Any]:
    """Where the newest checkpoint stands."""
    return json.loads((final(output) / "checkpoint.json").read_text())["progress"]


def steps_logged(output: Path) -> int:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def beats_of(output: Path) -> dict[int, Beat]:
    """What the ranks of a supervised run have said last."""
    return {rank: beat for folder in output.glob(".heartbeats/*") for rank, beat in read_beats(folder).items()}


def logged_steps(output: Path) -> list[int]:
    """The step of each line of the metrics log."""
    return [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
