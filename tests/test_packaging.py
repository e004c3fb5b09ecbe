"""Wheel and sdist: what is in them, that they run without the repository, and that one place has the version."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import artkv
from artkv.config.paths import shipped_folder

ROOT = Path(__file__).resolve().parents[1]
# What installs artkv from the repository, or from the sdist.
NOT_SHIPPED = {"environment.sh", "quickstart.sh", "art_encoder.sh", "test.sh", "Dockerfile", "artkv.def"}


def tracked(*folders: str) -> list[str]:
    """The files of the repository, as git has them and as they are now."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of a copy of the repository, which building would write into."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, and what belongs into a wheel is what git has")
    copy, dist = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    # A user's own, and what Python and a killed run leave: none of it is to come along.
    (copy / "launch" / "hostfile").write_text("secret slots=8\n")
    (copy / "artkv" / "__pycache__").mkdir()
    (copy / "artkv" / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"x")
    build = "import setuptools.build_meta as build; build.build_sdist(%r); build.build_wheel(%r)" % (2 * (str(dist),))
    made = subprocess.run(
        [sys.executable, "-c", build, str(dist)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return dist


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked, which is all that pip does with this one, but for `bin/artkv`."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`artkv` out of the wheel, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "artkv", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_wheel_has_every_file_that_artkv_reads_and_no_other(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {f"artkv/{name}" for name in tracked("ds_configs", "launch") if Path(name).name not in NOT_SHIPPED}
    assert names == {*tracked("artkv"), *data}


def test_the_sdist_builds_the_same_wheel_and_has_what_an_image_is_built_of(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert {*tracked("artkv", "ds_configs", "launch"), "constraints.txt", "LICENSE", "CITATION.cff"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "benchmarks")) or name.endswith("hostfile")]
    (source,) = tmp_path.iterdir()
    build = "import setuptools.build_meta as build; print(build.build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (again,), (wheel,) = source.glob("*.whl"), built.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_what_is_installed_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Its recipe and its DeepSpeed file are found, and a launch file comes out of it."""
    result = run(installed, tmp_path, "plan", "--gpu-memory", "8GiB")
    assert result.returncode == 0, result.stderr
    result = run(installed, tmp_path, "launch", "slurm", "--output", "train.sbatch")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "train.sbatch").read_text().count(f"environment={sys.prefix}\n") == 1
    found = "from artkv.config.paths import shipped_folder as f; print(f('launch'), f('ds_configs'))"
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", found]
    told = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert told.split() == [str(installed / "artkv" / "launch"), str(installed / "artkv" / "ds_configs")]


def test_in_a_checkout_the_folders_are_the_repositorys() -> None:
    assert {shipped_folder("launch"), shipped_folder("ds_configs")} == {ROOT / "launch", ROOT / "ds_configs"}


def test_the_version_is_the_same_wherever_it_stands(built: Path) -> None:
    assert (built / f"artkv-{artkv.__version__}.tar.gz").is_file()
    for name, form in (
        ("CITATION.cff", r"^version: (\S+)$"),
        ("docs/references.md", r"^  version = \{(\S+)\},$"),
        ("CHANGELOG.md", r"^## \[(\S+)\]"),
    ):
        assert re.findall(form, (ROOT / name).read_text(encoding="utf-8"), re.M)[0] == artkv.__version__, name


# Runs the Python of the version $0 with the arguments: the one of that name, or pyenv's, whose shims may refuse.
PYTHONS = """
for candidate in "python$0" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$0".*/bin/python; do
  "$candidate" -c '' 2>/dev/null && exec "$candidate" "$@"
done
exit 127
"""
PARSE = """
import sys, warnings
warnings.simplefilter("error")
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        compile(file.read(), path, "exec")
"""


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_of_the_range_that_is_here_reads_every_module(version: str) -> None:
    """`.ci/pythons` runs the tests under each, which takes half an hour and 6 GB a version; this takes a second."""
    modules = [str(ROOT / name) for name in tracked("artkv", "tests", "benchmarks", "setup.py") if name.endswith(".py")]
    read = subprocess.run(
        ["bash", "-c", PYTHONS, version, "-c", PARSE, *modules], capture_output=True, text=True, check=False
    )
    if read.returncode == 127:
        pytest.skip(f"no Python {version} here")
    assert (read.returncode, read.stderr) == (0, "")
