"""`artkv cache` under a real launcher: two ranks, a kill -9 of one, the bytes of a single process."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.ranks import SECONDS, run_to_end
from tests.system.slow_cache_rank import slow_cache
from tests.system.test_launchers import torchrun

pytestmark = pytest.mark.system

PROGRAM = Path(__file__).with_name("slow_cache_rank.py")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_ranks_killed_and_started_again_give_the_bytes_of_one(tiny_world: Path, tmp_path: Path) -> None:
    def cache(folder: Path) -> list[str]:
        return ["cache", "--config", str(tiny_world / "config.yaml"), "--set", f"frozen.feature_cache={folder}"]

    told = run_to_end(cache(tmp_path / "alone"), tmp_path / "logs", num_ranks=1, main=slow_cache)
    assert "features of 18 pictures" in told
    whole = files_of(tmp_path / "alone")
    assert len(whole) == 2 * (9 + 2) + 2  # of ViT and art encoder: shards, description, index; and two for all

    two = cache(tmp_path / "two")
    folder = tmp_path / "two"
    environment = os.environ | {"WRITING_SECONDS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(torchrun(str(PROGRAM), *two), env=environment, stderr=subprocess.DEVNULL) as launcher:
        until = time.monotonic() + SECONDS
        while len(list(folder.rglob("features-*"))) < 3:
            assert time.monotonic() < until
            assert launcher.poll() is None
            time.sleep(0.05)
        for pid in _children(launcher.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        assert launcher.wait(SECONDS) != 0
    assert 3 <= len(list(folder.rglob("features-*"))) < 18
    run_to_end(two, tmp_path / "logs", main=slow_cache)
    assert files_of(tmp_path / "two") == whole


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
