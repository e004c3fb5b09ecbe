"""The stages of a start, in their order, beside the imports that it begins with."""

import json
from pathlib import Path

from tests.benchmarks.conftest import run_script


def test_a_first_start_by_stages(tmp_path: Path) -> None:
    path = tmp_path / "start.json"
    done = run_script("start_time.py", "--size", "tiny", "--turns", "0", "--json", str(path), timeout=200)
    first, imports = json.loads(path.read_text())["turns"]
    ends = [first[stage] for stage in ("imported", "placed", "loaded", "ready")]
    assert 0 < ends[0] < ends[1] < ends[2] < ends[3]
    assert imports["imported"] > 0
    assert "| first start | " in done.stdout
