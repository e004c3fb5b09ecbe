"""The command's first lines: on what is no Linux they say so, before anything is imported that only Linux has."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# As on Windows, whose Python has no module `resource`.
ELSEWHERE = "import sys; sys.platform = {platform!r}; sys.modules['resource'] = None; sys.argv[1:] = ['--version']; "
AS_MODULE = "import runpy; runpy.run_module('artkv', run_name='__main__')"
AS_COMMAND = "from artkv.__main__ import main; sys.exit(main())"  # what pip writes for an entry point


def run(platform: str, start: str) -> subprocess.CompletedProcess[str]:
    code = ELSEWHERE.format(platform=platform) + start
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("start", [AS_MODULE, AS_COMMAND])
@pytest.mark.parametrize(
    ("platform", "remedy"),
    [("win32", "on Windows install it inside WSL2"), ("darwin", "on a Mac use"), ("freebsd14", "use another machine")],
)
def test_another_system_than_linux_is_told_in_one_line(platform: str, remedy: str, start: str) -> None:
    result = run(platform, start)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(f"artkv: needs Linux, and this is {platform}; {remedy}")
    assert result.stderr.endswith("(docs/install.md)\n")


@pytest.mark.parametrize("start", [AS_MODULE, AS_COMMAND])
def test_on_linux_the_command_runs(start: str) -> None:
    code = f"import sys; sys.argv[1:] = ['--version']; {start}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "artkv" in result.stdout


def test_the_installed_command_starts_there() -> None:
    assert '"artkv = artkv.__main__:main"' in (ROOT / "setup.py").read_text(encoding="utf-8")
