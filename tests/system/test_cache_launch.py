"""`artkv cache` under a real launcher: two ranks, a kill -9 of one, the bytes of a single process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.test_launchers import command

pytestmark = pytest.mark.system

SECONDS = 300
# Shards of two records, and a process that is slow to write them, so that it can be killed between two.
_SLOW_RANK = """
import os, sys, time
import artkv.feature_cache.filling as filling
import artkv.feature_cache.contents as contents
from artkv.cli import main
filling.RECORDS_A_SHARD = 2
contents._SETTLED_SECONDS = 0.0
write = filling.write_shard
filling.write_shard = lambda *given: (write(*given), time.sleep(float(os.environ.get("WRITING_SECONDS", "0"))))
sys.exit(main())
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_ranks_killed_and_started_again_give_the_bytes_of_one(tiny_world: Path, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(_SLOW_RANK)
    given = ["cache", "--config", str(tiny_world / "config.yaml"), "--set"]
    alone = [sys.executable, str(program), *given, f"frozen.feature_cache={tmp_path / 'alone'}"]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "features of 18 pictures" in done.stdout
    whole = files_of(tmp_path / "alone")
    assert len(whole) == 9 + 3

    torchrun = command("poisoned", tiny_world, tmp_path)[:5]  # torchrun with two processes, and a free port
    two = [*torchrun, str(program), *given, f"frozen.feature_cache={tmp_path / 'two'}"]
    shards = tmp_path / "two" / "shards"
    with subprocess.Popen(two, env={**_environment(), "WRITING_SECONDS": "1"}, stderr=subprocess.DEVNULL) as launcher:
        until = time.monotonic() + SECONDS
        while len(list(shards.glob("features-*"))) < 3:
            assert time.monotonic() < until
            assert launcher.poll() is None
            time.sleep(0.05)
        for pid in _children(launcher.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        assert launcher.wait(SECONDS) != 0
    assert 3 <= len(list(shards.glob("features-*"))) < 9
    again = subprocess.run(two, env=_environment(), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert again.returncode == 0, again.stderr
    assert files_of(tmp_path / "two") == whole


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "WRITING_SECONDS"}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
