"""What the pods of launch/jobset.yaml run, as two of them on this machine: preempted, and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.launch_files.test_recipes import pods
from tests.system.ranks import SECONDS, free_port
from tests.system.run_files import logged_steps, progress, steps_logged

pytestmark = pytest.mark.system


def start(folder: Path, config: Path) -> list[subprocess.Popen[str]]:
    """Both pods, each with one rank, on a port that is free."""
    script = pods()["template"]["spec"]["containers"][0]["args"][0]
    assert script.count("29500") == 1
    script = script.replace("29500", free_port())
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu",
        "NODES": "2", "GPUS": "1", "CONFIG": str(config), "MASTER": "127.0.0.1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return [
        subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env={**environment, "JOB_COMPLETION_INDEX": str(pod)},
            stdout=(folder / f"pod{pod}.txt").open("a"), stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for pod in range(2)
    ]  # fmt: skip


def ends(running: list[subprocess.Popen[str]]) -> list[int]:
    return [pod.wait(SECONDS) for pod in running]


def test_a_pods_sigterm_saves_the_run_and_the_next_pods_end_it(tiny_world: Path, tmp_path: Path) -> None:
    """SIGTERM goes to the container's first process alone: to `artkv supervise`, by the script's exec."""
    output = tmp_path / "run"
    tree = yaml.safe_load((tiny_world / "config.yaml").read_text())
    for section in tree.values():  # paths are relative to the file
        for key, value in section.items():
            if isinstance(value, str) and (tiny_world / value).exists():
                section[key] = str(tiny_world / value)
    tree.setdefault("training", {})["num_epochs"] = 12
    tree.setdefault("run", {}).update(output_dir=str(output), log_every=1)
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump(tree))
    running = start(tmp_path, config)
    try:
        deadline = time.monotonic() + SECONDS
        while steps_logged(output) < 2:
            assert time.monotonic() < deadline
            assert all(pod.poll() is None for pod in running), (tmp_path / "pod0.txt").read_text()
            time.sleep(0.05)
        running[1].send_signal(signal.SIGTERM)
        assert 75 in ends(running), (tmp_path / "pod1.txt").read_text()
        assert json.loads((output / "preempted.json").read_text())["reason"] == "SIGTERM"
        assert progress(output)["step"] >= 2
        running = start(tmp_path, config)
        assert ends(running) == [0, 0], (tmp_path / "pod0.txt").read_text()
    finally:
        for pod in running:
            if pod.poll() is None:
                os.killpg(pod.pid, signal.SIGKILL)
    assert not (output / "preempted.json").exists()
    steps = logged_steps(output)
    assert sorted(set(steps)) == list(range(min(steps), max(steps) + 1))
