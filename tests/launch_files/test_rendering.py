"""What `artkv launch` writes: nothing of the repository is in it, shells take it, and it starts what it is to start."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artkv.launch_files.kinds import KINDS
from artkv.launch_files.rendering import render
from tests.test_launch_scripts import ODD, PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
SHELL = {name: kind for name, kind in KINDS.items() if kind.source.endswith((".sh", ".sbatch"))}


class Written:
    """A written script in a folder without a repository, and an environment of programs that tell."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.told = folder, folder / "told"
        self.prefix = folder / "an environment"
        programs = self.prefix / "bin"
        programs.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!{sys.executable}\n{text}")
            (programs / name).chmod(0o755)
        self.script = folder / "my script"
        self.script.write_text(render(KINDS[kind], self.script, self.prefix))
        self.config = folder / "my.yaml"
        self.config.write_text("run: {output_dir: out}\n")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": "/usr/bin:/bin", "TOLD": str(self.told), "HOME": "/root", "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "0", "SLURM_ARRAY_TASK_ID": "3",
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(self.script), *arguments], cwd=self.folder, env=environment | variables, text=True,
            capture_output=True, timeout=100, check=False,
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.told.read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_repository_is_in_what_is_written(kind: str) -> None:
    text = render(KINDS[kind], Path("/jobs/x"), Path("/envs/art"))
    for word in ("launch/", "environment.sh", "BASH_SOURCE", "repository"):
        assert word not in text
    if kind in SHELL:
        assert text.count("environment=/envs/art\n") == 1


@pytest.mark.parametrize("kind", SHELL)
def test_shellcheck_finds_nothing_in_what_is_written(kind: str, tmp_path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    script = tmp_path / KINDS[kind].source
    script.write_text(render(KINDS[kind], Path("an 'odd' name"), Path("/envs/art 1")))
    found = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("kind", "program", "verb"),
    [
        ("local", "python", "train"), ("multinode", "deepspeed", "train"), ("slurm", "python", "train"),
        ("slurm-deepspeed", "deepspeed", "train"), ("slurm-cache", "python", "cache"),
        ("slurm-evaluate", "python", "evaluate"), ("slurm-sweep", "python", "sweep"),
    ],
)  # fmt: skip
def test_a_written_script_runs_the_environments_programs(kind: str, program: str, verb: str, tmp_path: Path) -> None:
    """pdsh refuses folders with odd names, so that one has a plain one."""
    folder = tmp_path / ("plain" if kind == "multinode" else ODD)
    folder.mkdir()
    written = Written(folder, kind)
    if kind == "multinode":
        (folder / "hostfile").write_text("n1 slots=1\n")
        (folder / "an environment").rename(folder / "environment")
        written.script.write_text(render(KINDS[kind], written.script, folder / "environment"))
    first = [str(written.config)] if kind in ("local", "multinode") else []
    result = written.run(*first, "--set", "training.seed=3", CONFIG=str(written.config))
    assert result.returncode == 0, result.stderr
    assert [call for call in written.calls() if call[0] == program and verb in call and "training.seed=3" in call]


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_an_environment_that_is_gone_is_told_with_the_line_to_correct(kind: str, tmp_path: Path) -> None:
    written = Written(tmp_path, kind)
    shutil.rmtree(written.prefix)
    result = written.run(str(written.config))
    assert result.returncode == 1
    assert f"neither in {written.prefix} nor on PATH; correct the line environment=" in result.stderr


def test_variables_name_another_environment_or_none(tmp_path: Path) -> None:
    written = Written(tmp_path, "local")
    elsewhere = tmp_path / "elsewhere"
    written.prefix.rename(elsewhere)
    assert written.run(str(written.config), VENV=str(elsewhere)).returncode == 0
    path = f"{elsewhere / 'bin'}:{os.defpath}"
    assert written.run(str(written.config), VENV="none", PATH=path).returncode == 0


@pytest.mark.parametrize("kind", ["slurm", "slurm-cache", "slurm-evaluate", "slurm-sweep"])
def test_with_a_container_the_tasks_run_in_it(kind: str, tmp_path: Path) -> None:
    """With no artkv outside: an apptainer that tells, and runs what it is given with the programs of an image."""
    written = Written(tmp_path, kind)
    image = tmp_path / "image"
    written.prefix.rename(image)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("srun", "scontrol"):
        shutil.copy(image / "bin" / name, outside)
    (outside / "apptainer").write_text(
        f"#!{sys.executable}\n{PROGRAMS['deepspeed']}"
        f"os.environ['PATH'] = {str(image / 'bin')!r} + ':' + os.environ['PATH']\n"
        "os.execvp(sys.argv[4], sys.argv[4:])\n"
    )
    (outside / "apptainer").chmod(0o755)
    result = written.run(PATH=f"{outside}:/usr/bin:/bin", CONTAINER="my artkv.sif", CONFIG=str(written.config))
    assert result.returncode == 0, result.stderr
    verb = "train" if kind == "slurm" else kind.removeprefix("slurm-")
    ((*_, call),) = [[call for call in written.calls() if call[0] == "apptainer" and verb in call]]
    assert call[1:7] == ["exec", "--nv", "my artkv.sif", "python", "-m", "artkv"]
    assert not [call for call in written.calls() if call[0] == "artkv"]  # nothing supervises


def test_deepspeeds_launcher_refuses_a_container(tmp_path: Path) -> None:
    result = Written(tmp_path, "slurm-deepspeed").run(CONTAINER="artkv.sif")
    assert (result.returncode, "CONTAINER=artkv.sif: " in result.stderr) == (1, True)
