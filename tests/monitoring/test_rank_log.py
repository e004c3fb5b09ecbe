"""Where the output of the ranks goes, that of their libraries too."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounted import Disk

RANK = """
import os, sys
from pathlib import Path
from artkv.errors import UserError
from artkv.monitoring.rank_log import rank_log
print("before", flush=True)
try:
    with rank_log(Path(sys.argv[1]), int(sys.argv[2])):
        print("inside")
        os.write(2, b"from a library\\n")
        os.system("echo from a child")
        if sys.argv[3] == "fail":
            1 / 0
        if sys.argv[3] == "wrong":
            raise UserError("give another folder")
finally:
    print("after")
"""


def run(run_dir: Path, rank: int, how: str = "well") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", RANK, str(run_dir), str(rank), how], capture_output=True, text=True, check=False
    )


def test_other_ranks_write_to_files_that_restarts_append_to(tmp_path: Path) -> None:
    for _ in range(2):
        result = run(tmp_path, 3)
        assert result.stdout == "before\nafter\n"
        assert result.stderr == ""
    lines = (tmp_path / "logs" / "rank_00003.log").read_text().splitlines()
    # Python's own buffer is flushed when it likes.
    told = sorted(line for line in lines if "rank 3, process" not in line)
    assert told == ["from a child"] * 2 + ["from a library"] * 2 + ["inside"] * 2
    assert sum("rank 3, process" in line for line in lines) == 2


def test_rank_0_keeps_the_console(tmp_path: Path) -> None:
    assert "inside" in run(tmp_path, 0).stdout
    assert not (tmp_path / "logs").exists()


def test_an_error_is_in_the_file_and_on_the_console(tmp_path: Path) -> None:
    result = run(tmp_path, 1, "fail")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
    assert "ZeroDivisionError" in (tmp_path / "logs" / "rank_00001.log").read_text()
    assert "give another folder" in run(tmp_path, 2, "wrong").stderr
    told = (tmp_path / "logs" / "rank_00002.log").read_text()
    assert "artkv: give another folder" in told
    assert "Traceback" not in told


FULL = """
import os, sys
from pathlib import Path
from artkv.monitoring.rank_log import rank_log
with rank_log(Path(sys.argv[1]), int(sys.argv[2])):
    for _ in range(3):
        print("inside", flush=True)
        print("inside", file=sys.stderr)
os._exit(0)
"""


@pytest.mark.parametrize("rank", [0, 2])
def test_a_full_disk_costs_output_and_no_run(disk: Disk, rank: int) -> None:
    disk.fill()
    with (disk.folder / "console").open("w") as console:
        result = subprocess.run(
            [sys.executable, "-c", FULL, str(disk.folder), str(rank)], stdout=console, stderr=console, check=False
        )
    assert result.returncode == 0


def test_a_file_in_the_place_of_the_logs_leaves_the_console(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("mine")
    result = run(tmp_path, 1)
    assert result.returncode == 0
    assert "inside" in result.stdout
    assert "rank_00001.log: cannot be written (File exists); this rank's output goes to the console" in result.stderr
