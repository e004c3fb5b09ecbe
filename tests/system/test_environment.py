"""launch/environment.sh with a Python that only writes down what it is asked to install."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# `python -m venv FOLDER` puts this program there again; `python -m pip install ...` is written down.
_PYTHON = """#!/usr/bin/env bash
if [ "$2" = venv ]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
else
  shift 3
  echo "$@" >>"$(dirname "$0")/../pip_install"
fi
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what is read, with a Python beside it."""
    folder = tmp_path / "repository"
    (folder / "launch").mkdir(parents=True)
    for name in ("launch/environment.sh", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "python").write_text(_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return folder


def source(repository: Path, extras: str = "", then: str = "true") -> subprocess.CompletedProcess[str]:
    """Sources the file in a script that is started in the folder above."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"source repository/launch/environment.sh; {then}"],
        cwd=repository.parent,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(repository.parent / "python"), "EXTRAS": extras},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


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


def test_an_installation_that_failed_is_tried_again(repository: Path) -> None:
    python = repository.parent / "python"
    python.write_text(_PYTHON.replace("shift 3", 'shift 3; case "$*" in *"-e ."*) exit 1 ;; esac'))
    with pytest.raises(subprocess.CalledProcessError):
        source(repository)
    assert not (repository / ".venv" / "installed").exists()
    python.write_text(_PYTHON)
    source(repository)
    assert (repository / ".venv" / "installed").exists()


def test_the_shell_stands_in_the_root_and_knows_where_its_caller_stands(repository: Path) -> None:
    shown = source(repository, then='printf "%s\\n" "$PWD" "$PATH" "$ARTKV_CALLER_FOLDER" "$ARTKV_CALLER_PATH"').stdout
    assert shown.splitlines() == [
        str(repository),
        f"{repository}/.venv/bin:/usr/bin:/bin",
        str(repository.parent),
        "/usr/bin:/bin",
    ]
