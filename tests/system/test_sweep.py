"""A sweep of real trainings, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artkv.run_folder.processes import descendants
from tests.system.run_files import final_bytes

pytestmark = pytest.mark.system


def test_a_sweep_trains_answers_and_compares_and_leaves_alone_what_is_done(tiny_world: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"config: {tiny_world}/config.yaml\noutput_dir: {tmp_path}/runs\n"
        "grid:\n  kv_modulation.num_prefix_tokens: [0, 2]\n  training.num_epochs: [1]\n",
        encoding="utf-8",
    )

    def sweep(*options: str) -> str:
        command = [sys.executable, "-m", "artkv", "sweep", str(file), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = sweep("--ranks", "1")
    assert "run 1 (num_prefix_tokens=2,num_epochs=1): 2 of 2 to do" in first
    assert "on - control" in first
    control, prefix = (tmp_path / "runs" / f"num_prefix_tokens={tokens},num_epochs=1" for tokens in (0, 2))
    weights = [final_bytes(control), final_bytes(prefix)]
    tree = json.loads((tmp_path / "runs" / "sweep.json").read_text(encoding="utf-8"))
    assert list(tree["settings"][1]["comparison"]["against"]) == ["off", "shuffled", "blank", "control"]
    again = sweep("--ranks", "1")
    assert "to do" not in again
    assert [final_bytes(control), final_bytes(prefix)] == weights
    assert sweep("--report") == again
    assert [line.split()[1] for line in sweep("--list").splitlines()] == ["done", "done"]


def trains(pid: int) -> bool:
    try:
        return b"\0train\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_before_a_training_has_begun_ends_the_sweep(
    number: signal.Signals, tiny_world: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"config: {tiny_world}/config.yaml\noutput_dir: {tmp_path}/runs\ngrid:\n  training.seed: [1, 2]\n",
        encoding="utf-8",
    )
    words = [sys.executable, "-m", "artkv", "sweep", str(file), "--ranks", "1"]
    with subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not any(map(trains, descendants(process.pid))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert out.count("to do, time left") == 1
    assert f"artkv: stopped by {number.name}, in run 0 (seed=1), during train; go on with the same command" in told
