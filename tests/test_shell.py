"""Commands are named and quoted so that the shell of artkv's caller takes them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from artkv import shell


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment in it, artkv started there by its caller."""
    programs = tmp_path / "project" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "artkv"):
        (programs / name).write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("ARTKV_CALLER_PATH", "ARTKV_CALLER_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_a_program_is_named_as_the_callers_path_finds_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.command("artkv", "status", Path("outputs/demo")) == ".venv/bin/artkv status outputs/demo"
    monkeypatch.setenv("PATH", f"{project}/.venv/bin:/usr/bin:/bin")
    assert shell.command("artkv", "status") == "artkv status"
    # A script that put the environment on PATH for itself.
    monkeypatch.setenv("ARTKV_CALLER_PATH", "/usr/bin:/bin")
    assert shell.command("artkv", "status") == ".venv/bin/artkv status"
    # Another artkv on PATH is not this one.
    other = project.parent / "artkv"
    other.write_text("")
    other.chmod(0o755)
    monkeypatch.setenv("ARTKV_CALLER_PATH", str(project.parent))
    assert shell.command("artkv", "status") == ".venv/bin/artkv status"


def test_paths_are_written_from_the_callers_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTKV_CALLER_FOLDER", str(project.parent))
    assert shell.command("artkv", Path("outputs")) == "project/.venv/bin/artkv project/outputs"
    (project / "deep").mkdir()
    monkeypatch.setenv("ARTKV_CALLER_FOLDER", str(project / "deep"))
    assert shell.command("artkv", Path("outputs")) == f"{project}/.venv/bin/artkv {project}/outputs"


def test_a_line_comes_apart_in_a_shell_as_it_was_put_together(project: Path) -> None:
    words = ["ask", "Who painted the 'Night Watch'?", "$HOME `x` \\"]
    line = shell.command("artkv", *words, Path("a picture.jpg"))
    said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, cwd=project).stdout
    assert said.splitlines() == [*words, "a picture.jpg"]
    assert shlex.split(line)[1:] == [*words, "a picture.jpg"]


def test_a_program_that_calls_artkv_is_shown_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.has_person()
    for name, value in shell.without_person().items():
        monkeypatch.setenv(name, value)
    assert not shell.has_person()
    assert os.environ["PATH"] == "/usr/bin:/bin"


@pytest.mark.parametrize(
    ("is_terminal", "before", "after"), [(False, None, "1"), (False, "0", "0"), (True, None, None)]
)
def test_bars_of_the_hub_are_for_terminals(
    is_terminal: bool, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", before or "")  # so that what is set here is taken back
    if before is None:
        monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    shell.keep_bars_to_terminals()
    assert os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == after
