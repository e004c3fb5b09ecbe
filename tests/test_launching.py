"""Verbs in processes of their own."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import artkv.launching
from artkv.errors import Preempted
from artkv.launching import command, launch


def test_a_verbs_exit_code_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch("status", 1, "nowhere") == 1
    assert "nowhere: is no folder" in capfd.readouterr().err


def test_several_ranks_are_deepspeeds_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def popen(command: list[str], **options: Any) -> Any:
        seen.append(command)
        return real([sys.executable, "-c", ""])

    real = subprocess.Popen
    monkeypatch.setattr(artkv.launching.subprocess, "Popen", popen)
    assert launch("train", 2, "--config", "a.yaml") == 0
    (words,) = seen
    assert words[1:3] == ["-m", "deepspeed.launcher.launch"]
    assert words[-5:] == ["--module", "artkv", "train", "--config", "a.yaml"]


@pytest.mark.parametrize(
    ("visible", "given"),
    [
        (None, ["0", "1"]),
        ("2,3", ["2", "3"]),
        ("5, 4,3", ["5", "4"]),
        ("GPU-4d1f,MIG-7/1/0", ["GPU-4d1f", "MIG-7/1/0"]),
        ("3", ["3", "-1"]),  # of no other GPU is anything known
        ("", ["-1", "-1"]),  # to compute on the CPU
    ],
)
def test_ranks_get_the_gpus_that_are_shown(
    visible: str | None, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (world,) = [word for word in command(2, "artkv", "train") if word.startswith("--world_info=")]
    assert json.loads(base64.urlsafe_b64decode(world.partition("=")[2])) == {"localhost": given}
    assert command(1, "artkv", "train")[1:] == ["-m", "artkv", "train"]


def test_each_start_has_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def port() -> str:
        return next(word for word in command(2, "artkv", "train") if word.startswith("--master_port="))

    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert len({port() for _ in range(5)}) > 1
    monkeypatch.setenv("MASTER_PORT", "12345")
    assert port() == "--master_port=12345"


RANK = """import json, os, pathlib, signal, sys
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(os.environ["RANK"]))
names = ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR")
folder = pathlib.Path(sys.argv[-1])
new = folder / f"new{os.environ['RANK']}"
new.write_text(json.dumps([os.environ[name] for name in names]))
new.rename(folder / f"told{os.environ['RANK']}")
while not asked:
    signal.pause()
(folder / f"saved{asked[0]}").touch()
"""


@pytest.mark.system
def test_real_ranks_get_gpus_by_name_and_save_at_a_sigterm(tmp_path: Path) -> None:
    (tmp_path / "a_rank.py").write_text(RANK)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-4d1f,GPU-77,GPU-9", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = f"{Path(__file__).parents[1]}:{tmp_path}"
    words = [sys.executable, "-m", "artkv.launching", "--ranks", "2", "a_rank", str(tmp_path)]
    with subprocess.Popen(words, env=environment) as process:
        told = [tmp_path / f"told{rank}" for rank in range(2)]
        deadline = time.monotonic() + 120
        while not all(path.exists() for path in told):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert [json.loads(path.read_text()) for path in told] == [
        [str(rank), "2", "GPU-4d1f,GPU-77", "127.0.0.1"] for rank in range(2)
    ]
    assert all((tmp_path / f"saved{rank}").exists() for rank in range(2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_who_asks_this_process_to_stop_asks_the_other(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"  # as a terminal does, which sends it to both
        f"os.kill({os.getpid()}, {int(number)})\n"
        "time.sleep(60)\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(artkv.launching.subprocess, "Popen", lambda *_, **__: real([sys.executable, "-c", program]))
    before = {one: signal.signal(one, lambda *_: None) for one in (number, signal.SIGHUP)}
    try:
        own = signal.getsignal(number)
        with pytest.raises(Preempted, match=f"^stopped by {number.name}$"):
            launch("train", 1)
        assert signal.getsignal(number) is own
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_while_the_other_is_started_reaches_it(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = subprocess.Popen, []

    def popen(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), number)
        started.append(real(["sleep", "60"]))
        os.kill(os.getpid(), number)
        return started[0]

    monkeypatch.setattr(artkv.launching.subprocess, "Popen", popen)
    before = signal.signal(number, lambda *_: None)
    try:
        with pytest.raises(Preempted, match=f"^stopped by {number.name}$"):
            launch("evaluate", 1)
        assert started[0].returncode == -signal.SIGTERM
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(number, before)
