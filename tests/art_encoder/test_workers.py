"""A training whose decoding processes get the signals of the whole job too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.art_encoder.conftest import FAST

pytestmark = pytest.mark.system

SECONDS = 120


def command(folders: Path, output: Path, *more: str) -> list[str]:
    options = {"data": folders, "output-dir": output, "epochs": 400} | FAST | {"workers": 2}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "artkv", "art-encoder", *words, *more]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_all_processes_is_saved_and_leaves_none(
    folders: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As a terminal, torchrun and DeepSpeed send it: to the whole group."""
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command(folders, tmp_path / "out"), stdout=file, stderr=file, start_new_session=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + SECONDS
            while not epochs_done(tmp_path / "out" / "metrics.jsonl"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            os.killpg(process.pid, number)
            assert process.wait(SECONDS) == 75, log.read_text()
        finally:
            process.kill()
        assert "go on with --resume" in log.read_text()
        deadline = time.monotonic() + SECONDS
        while group_lives(process.pid):  # the fork server needs a moment
            assert time.monotonic() < deadline
            time.sleep(0.02)


def epochs_done(metrics: Path) -> int:
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
