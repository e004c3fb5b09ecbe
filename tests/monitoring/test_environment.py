"""The environment report, with and without git, and without secrets."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from artkv.monitoring import environment
from artkv.monitoring.environment import environment_report


def test_report_is_json_with_versions_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("HF_TOKEN", "not-for-the-run-folder")
    text = json.dumps(environment_report(), allow_nan=False)
    report = json.loads(text)
    assert report["packages"]["torch"] == metadata.version("torch")
    assert report["packages"]["deepspeed"] == metadata.version("deepspeed")
    assert report["variables"]["WORLD_SIZE"] == "4"
    assert report["host_memory_bytes"] > 2**28
    assert report["cpu_cores_usable"] >= 1
    assert len(report["gpus"]) == torch.cuda.device_count()
    assert "not-for-the-run-folder" not in text


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_and_changes_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_state(tmp_path) == {"commit": head, "changed": False}
    (tmp_path / "untracked").write_text("ignored")
    assert environment.git_state(tmp_path) == {"commit": head, "changed": False}
    (tmp_path / "file").write_text("two")
    assert environment.git_state(tmp_path) == {"commit": head, "changed": True}
    (tmp_path / "site-packages").mkdir()  # installed inside somebody else's checkout
    assert environment.git_state(tmp_path / "site-packages") is None


def test_no_git_and_no_checkout_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment_report()["git"] is None
