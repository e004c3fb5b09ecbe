"""launch/environment.sh with a Python that only writes down what it is asked to install."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# `python -m venv FOLDER` puts this program there, but in nobody's place; `python -m pip install ...` is written down,
# and fails by a Python that is too old.
_PYTHON = """#!/usr/bin/env bash
case "$1 $2 $3" in
  "-c "*) echo "Python VERSION" ;;
  "-m venv "*) mkdir -p "$3/bin" && { [ -e "$3/bin/python" ] || cp "$0" "$3/bin/python"; } ;;
  "-m pip install")
    shift 3
    echo "$@" >>"$(dirname "$0")/../pip_install"
    [ VERSION != 3.10 ] || exit 1
    ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what is read, with a Python beside it."""
    folder = tmp_path / "repository"
    (folder / "launch").mkdir(parents=True)
    for name in ("launch/environment.sh", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    make_python(tmp_path / "python", "3.11")
    return folder


def make_python(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PYTHON.replace("VERSION", version))
    path.chmod(0o755)


def run(repository: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In the folder above."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(repository.parent / "python"), **variables}
    return subprocess.run(
        command, cwd=repository.parent, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def source(
    repository: Path, extras: str = "", then: str = "true", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Sources the file in a script that is started in the folder above."""
    script = f"source repository/launch/environment.sh; {then}"
    return run(repository, "bash", "-euo", "pipefail", "-c", script, EXTRAS=extras, **variables)


def installed(repository: Path) -> list[str]:
    """What pip was asked for since the last call, options left out."""
    written = repository / ".venv" / "pip_install"
    lines = written.read_text().splitlines() if written.exists() else []
    written.unlink(missing_ok=True)
    return [line.split("-c constraints.txt ")[1].removeprefix("--quiet ") for line in lines]


def test_a_user_gets_what_artkv_needs_and_the_tests_the_rest(repository: Path) -> None:
    said = source(repository).stderr.splitlines()
    assert [line.split()[1] for line in said] == ["1/3", "2/3", "3/3"]
    assert installed(repository) == ["torch torchvision", "-e ."]
    assert source(repository).stderr == ""
    assert installed(repository) == []
    # The tools after the user's installation, and then neither again.
    source(repository, "dev")
    assert installed(repository) == ["torch torchvision", "-e .[dev]", "--no-deps salesforce-lavis"]
    for extras in ("dev", ""):
        assert source(repository, extras).stderr == ""
    assert installed(repository) == []


def test_other_versions_are_installed_with_the_extras_that_are_asked_for(repository: Path) -> None:
    source(repository, "dev")
    installed(repository)
    assert source(repository).stderr == ""  # it has all that a user needs
    with (repository / "constraints.txt").open("a") as file:
        file.write("attrs==1\n")
    source(repository)
    assert installed(repository) == ["torch torchvision", "-e ."]
    source(repository, "dev")
    assert installed(repository) == ["torch torchvision", "-e .[dev]", "--no-deps salesforce-lavis"]


def test_an_installation_that_failed_is_made_anew_with_the_python_that_is_named_next(repository: Path) -> None:
    """While others may wait for it: they hold the file that they wait for."""
    make_python(repository.parent / "python", "3.10")
    (repository / "others.txt").write_text("")
    assert source(repository, CONSTRAINTS="others.txt").returncode == 1
    environment = repository / ".venv"
    assert not (environment / "installed").exists()
    lock = (environment / "lock").stat().st_ino
    make_python(repository.parent / "python", "3.12")
    result = source(repository)
    assert result.stderr.splitlines()[0] == "artkv: .venv: its installation was not finished; making it anew"
    assert result.returncode == 0
    assert installed(repository) == ["torch torchvision", "-e ."]
    assert "Python 3.12" in (environment / "bin" / "python").read_text()
    assert (environment / "installed").exists()
    assert (environment / "lock").stat().st_ino == lock
    # Finished, it stays, whatever Python is named and whatever is installed anew.
    make_python(repository.parent / "python", "3.13")
    (repository / "setup.py").write_text("")
    assert "anew" not in source(repository).stderr
    assert "Python 3.12" in (environment / "bin" / "python").read_text()


def test_what_somebody_made_in_the_place_of_an_unfinished_one_stays(repository: Path) -> None:
    make_python(repository.parent / "old", "3.11")
    failing = (repository.parent / "old").read_text().replace("[ 3.11 != 3.10 ]", "false")
    (repository.parent / "old").write_text(failing)
    assert source(repository, PYTHON=str(repository.parent / "old")).returncode != 0
    venv = repository / ".venv"
    assert (venv / "made_by_artkv").exists()
    (venv / "mine").write_text("")
    make_python(venv / "bin" / "python", "3.12")
    (venv / "pyvenv.cfg").write_text("version = 3.12")
    later = (venv / "made_by_artkv").stat().st_mtime_ns + 10**9
    os.utime(venv / "pyvenv.cfg", ns=(later, later))
    said = source(repository)
    assert said.returncode == 0, said.stderr
    assert "anew" not in said.stderr
    assert (venv / "mine").exists()


def test_an_environment_that_somebody_else_made_stays(repository: Path) -> None:
    """Its installation fails, and is tried again in it; nor does a folder that held other things get emptied."""
    make_python(repository / ".venv" / "bin" / "python", "3.13")
    keepsake = repository / ".venv" / "keepsake"
    keepsake.write_text("")
    python = repository / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace("shift 3", "exit 1"))
    for _ in range(2):
        assert source(repository).returncode == 1
    make_python(python, "3.13")
    result = source(repository)
    assert (result.returncode, "anew" in result.stderr, keepsake.exists()) == (0, False, True)
    assert "Python 3.13" in python.read_text()

    elsewhere = repository.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keepsake").write_text("")
    (repository / "others.txt").write_text("")
    make_python(repository.parent / "python", "3.10")
    for _ in range(2):
        assert source(repository, VENV=str(elsewhere), CONSTRAINTS="others.txt").returncode == 1
    assert (elsewhere / "keepsake").exists()


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.14"])
def test_a_python_that_the_versions_are_not_for_is_told_before_anything_is_made(repository: Path, version: str) -> None:
    python = repository.parent / "python"
    make_python(python, version)
    (repository / "launch" / "quickstart.sh").write_text((ROOT / "launch" / "quickstart.sh").read_text())
    for command, remedy in (
        (("bash", "repository/launch/quickstart.sh"), "PYTHON=python3.12 bash launch/quickstart.sh"),
        (("bash", "-c", "source repository/launch/environment.sh"), "export PYTHON=python3.12"),
    ):
        result = run(repository, *command)
        assert result.returncode == 1
        assert result.stderr == (
            f"artkv: {python}: Python {version}, while the versions of constraints.txt need Python 3.11, 3.12 or 3.13; "
            f"name another one that is installed: {remedy}\n"
        )
    assert not (repository / ".venv").exists()


def test_a_python_that_does_not_run_and_an_environment_of_the_wrong_one_are_told(repository: Path) -> None:
    assert "artkv: no-python: does not run, while" in source(repository, PYTHON="no-python").stderr
    make_python(repository / ".venv" / "bin" / "python", "3.10")
    result = source(repository)
    assert result.returncode == 1
    assert result.stderr.startswith("artkv: .venv/bin/python: Python 3.10, while")
    assert result.stderr.endswith("remove the folder (rm -r .venv), or name another one in VENV\n")
    assert (repository / ".venv" / "bin" / "python").exists()


def test_where_there_are_no_locks_nothing_that_another_job_may_be_making_is_removed(repository: Path) -> None:
    make_python(repository.parent / "python", "3.10")
    (repository / "others.txt").write_text("")
    assert source(repository, CONSTRAINTS="others.txt").returncode == 1
    programs = repository.parent / "programs"
    programs.mkdir()
    (programs / "flock").write_text("#!/bin/sh\nexit 1\n")
    (programs / "flock").chmod(0o755)
    result = source(repository, CONSTRAINTS="others.txt", PATH=f"{programs}:/usr/bin:/bin")
    assert result.returncode == 1
    assert "if none is at work, rm -r .venv" in result.stderr
    assert (repository / ".venv" / "bin" / "python").exists()


def test_the_shell_stands_in_the_root_and_knows_where_its_caller_stands(repository: Path) -> None:
    shown = source(repository, then='printf "%s\\n" "$PWD" "$PATH" "$ARTKV_CALLER_FOLDER" "$ARTKV_CALLER_PATH"').stdout
    assert shown.splitlines() == [
        str(repository),
        f"{repository}/.venv/bin:/usr/bin:/bin",
        str(repository.parent),
        "/usr/bin:/bin",
    ]
