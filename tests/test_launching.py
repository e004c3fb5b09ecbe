"""Verbs in processes of their own."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import artkv.launching
from artkv.launching import launch


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
    (command,) = seen
    assert command[1:] == [
        "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--log_level", "error",
        "--module", "artkv", "train", "--config", "a.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_who_asks_this_process_to_stop_asks_the_other(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        f"os.kill({os.getpid()}, {int(number)})\n"
        "time.sleep(60)\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(artkv.launching.subprocess, "Popen", lambda *_, **__: real([sys.executable, "-c", program]))
    before = signal.getsignal(number)
    assert launch("train", 1) == 75
    assert signal.getsignal(number) is before
