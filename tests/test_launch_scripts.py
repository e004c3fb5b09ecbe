"""launch/ in folders with spaces and quotes in their names, with programs in place that tell what they were given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ODD = "a 'folder' \"of\" #2 [x] & $HOME"
TELL = """import json, os, sys
with open(os.environ["TOLD"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
PROGRAMS = {
    "deepspeed": TELL,
    "pdsh": TELL,
    "scontrol": TELL + "print('n1\\nn2')\n",
    "srun": TELL + "os.execvp(sys.argv[2], sys.argv[2:])\n",  # after --kill-on-bad-exit=1
    "artkv": TELL + "os.execvp(sys.argv[sys.argv.index('--') + 1], sys.argv[sys.argv.index('--') + 1:])\n",
    "python": TELL + f"""
if sys.argv[1:3] == ["-m", "artkv.config"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
if sys.argv[1] == "-c":
    print(0)
""",
}  # fmt: skip


class Launch:
    """A copy of the repository's scripts below a folder, and programs that tell."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "artkv"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        self.told = folder / "told"
        self.programs = folder / "programs"
        self.programs.mkdir()
        for name, text in PROGRAMS.items():
            (self.programs / name).write_text(f"#!{sys.executable}\n{text}")
            (self.programs / name).chmod(0o755)
        self.config = folder / "my config.yaml"
        self.config.write_text("training: {seed: 1}\n")

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.programs}:/usr/bin:/bin", "VENV": "none", "TOLD": str(self.told), "HOME": "/root",
            "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "0",
        }  # fmt: skip
        return subprocess.run(
            ["bash", f"launch/{script}", *arguments], cwd=self.root, env=environment | variables, text=True,
            capture_output=True, timeout=100, check=False,
        )  # fmt: skip

    def given(self, program: str, word: str) -> list[str]:
        """What the last call of a program with this word was given."""
        calls = [json.loads(line) for line in self.told.read_text().splitlines()]
        return [call for call in calls if call[0] == program and word in call][-1]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    folder = tmp_path / ODD
    folder.mkdir()
    return Launch(folder)


def test_a_local_training_gets_every_word_as_it_is(launch: Launch) -> None:
    result = launch.run("train_local.sh", str(launch.config), "--set", "run.output_dir=run #2 'x'")
    assert result.returncode == 0, result.stderr
    assert launch.given("python", "train") == [
        "python", "-m", "artkv.launching", "artkv", "train", "--config", str(launch.config), "--resume", "auto",
        "--set", "run.output_dir=run #2 'x'",
    ]  # fmt: skip


def test_an_art_encoders_training_gets_every_word_as_it_is(launch: Launch) -> None:
    result = launch.run("art_encoder.sh", "--data", "wiki art #2 'x'", RANKS="3")
    assert result.returncode == 0, result.stderr
    assert launch.given("python", "art-encoder") == [
        "python", "-m", "artkv.launching", "--ranks", "3", "artkv", "art-encoder", "--resume", "--data",
        "wiki art #2 'x'",
    ]  # fmt: skip
    assert launch.run("art_encoder.sh").returncode == 2


@pytest.mark.parametrize("script", ["train.sbatch", "train_deepspeed.sbatch"])
@pytest.mark.parametrize("given", [True, False])
def test_a_job_goes_to_the_folder_that_is_named_and_looks_for_its_marker_there(
    launch: Launch, script: str, given: bool
) -> None:
    """Named by OUTPUT_DIR, or by the config where that is not given."""
    output = launch.root / "run [1] #2 'x'"
    launch.config.write_text(f"run: {{output_dir: {json.dumps(str(output))}}}\n")
    (output / "checkpoints" / "step_00000010").mkdir(parents=True)
    (output / "preempted.json").write_text('{"job": "7"}')
    variables = {"CONFIG": str(launch.config), "SLURM_RESTART_COUNT": "1"}
    if given:
        variables["OUTPUT_DIR"] = str(output)
        launch.config.write_text("run: {output_dir: elsewhere}\n")
    result = launch.run(script, "--set", "training.seed=3", **variables)
    assert result.returncode == 0, result.stderr
    assert launch.given("python" if script == "train.sbatch" else "deepspeed", "train")[-6:] == [
        "--set", "training.seed=3", "--set", f"run.output_dir={output}", "--resume", "auto",
    ]  # fmt: skip
    assert not (output / "preempted.json").exists()  # the earlier start's


def test_a_config_that_is_wrong_ends_a_job_with_its_message(launch: Launch) -> None:
    launch.config.write_text("training: {sed: 1}\n")
    result = launch.run("train.sbatch", CONFIG=str(launch.config))
    assert result.returncode == 1
    assert "training.sed = 1: unknown key; did you mean 'seed'?" in result.stderr


@pytest.mark.parametrize("script", ["evaluate.sbatch", "cache.sbatch"])
def test_other_jobs_get_every_word_as_it_is(launch: Launch, script: str) -> None:
    result = launch.run(script, "--set", "dataset.prompt={question} $x", CONFIG=str(launch.config), CHECKPOINT="a b'")
    assert result.returncode == 0, result.stderr
    given = launch.given("python", script.partition(".")[0])
    assert given[-1] == "dataset.prompt={question} $x"
    assert (str(launch.config) if script == "cache.sbatch" else "a b'") in given


def test_a_sweeps_run_that_saves_as_soon_as_it_is_told_is_requeued(launch: Launch) -> None:
    """Bash can lose the status of a program that ends while a signal ends the wait for it; ten times, as they race."""
    signals_the_script_and_ends = """#!/bin/bash
[ "$1" = -m ] || exit 0
trap '' TERM # which the script passes on
above() { awk '/^PPid/ {print $2}' "/proc/$1/status"; }
script=$$ # the outermost process of the script
while grep -q sweep.sbatch "/proc/$(above "$script")/cmdline"; do script=$(above "$script"); done
kill -TERM "$script"
exit 75
"""
    (launch.programs / "python").write_text(signals_the_script_and_ends)
    for _ in range(10):
        launch.told.unlink(missing_ok=True)
        result = launch.run("sweep.sbatch", SWEEP="sweep.yaml", SLURM_ARRAY_TASK_ID="3")
        assert result.returncode == 75, result.stderr
        assert launch.given("scontrol", "requeue") == ["scontrol", "requeue", "7"]


@pytest.mark.parametrize(("ending", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
def test_a_sweeps_job_ends_as_its_run_does(launch: Launch, ending: str, code: int) -> None:
    (launch.programs / "python").write_text(f'#!/bin/bash\n[ "$1" = -m ] || exit 0\necho "$*"\n{ending}\n')
    result = launch.run("sweep.sbatch", "--debug", SWEEP="a sweep'.yaml", SLURM_ARRAY_TASK_ID="3")
    assert result.returncode == code, result.stderr
    assert result.stdout == "-m artkv sweep a sweep'.yaml --run 3 --debug\n"
    assert not launch.told.exists()


def test_several_nodes_refuse_what_pdsh_cannot_carry(launch: Launch, tmp_path: Path) -> None:
    hostfile = launch.root / "launch" / "hostfile"
    assert "hostfile: no such file; copy launch/hostfile.example" in launch.run("train_multinode.sh", "x").stderr
    hostfile.write_text("# n1 slots=1\n\n")
    assert "hostfile: names no host; give lines such as" in launch.run("train_multinode.sh", "x").stderr
    hostfile.write_text("n1 slots=1\n")
    assert "pdsh cannot carry this path" in launch.run("train_multinode.sh", str(launch.config)).stderr
    plain = tmp_path / "plain"
    plain.mkdir()
    launch = Launch(plain)
    (launch.root / "launch" / "hostfile").write_text("n1 slots=1\n")
    for setting in ("run.output_dir=$(id)", "dataset.prompt=`id` {question}", "run.output_dir=a;b", "x=a\nb", "x='a'"):
        result = launch.run("train_multinode.sh", str(launch.config), "--set", setting)
        assert result.returncode == 1
        assert result.stderr.startswith(f"artkv: {setting}: pdsh cannot carry"), result.stderr
    result = launch.run("train_multinode.sh", str(launch.config), "--set", "run.output_dir=run 2")
    assert result.returncode == 0, result.stderr
    assert launch.given("deepspeed", "train")[-5:] == [
        str(launch.config),
        "--resume",
        "auto",
        "--set",
        "run.output_dir=run 2",
    ]
    (launch.programs / "pdsh").unlink()
    if shutil.which("pdsh", path="/usr/bin:/bin") is None:
        assert "pdsh is not installed here" in launch.run("train_multinode.sh", str(launch.config)).stderr


@pytest.mark.parametrize("script", ["train_local.sh", "train_multinode.sh"])
def test_without_an_argument_there_is_a_usage_line(launch: Launch, script: str) -> None:
    result = launch.run(script)
    assert (result.returncode, result.stderr) == (
        2, f"usage: bash launch/{script} CONFIG [--set SECTION.KEY=VALUE ...]\n",
    )  # fmt: skip


def test_a_setting_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("run: {output_dir: a b}\n")

    def ask(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "artkv.config", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        return result.returncode, result.stdout, result.stderr

    assert ask(str(path), "run.output_dir")[:2] == (0, "a b\n")
    assert ask(str(path), "run.output_dir", "--resume", "x", "--set", "run.output_dir=c #d")[:2] == (0, "c #d\n")
    assert "run.nothing: is no setting" in ask(str(path), "run.nothing")[2]
    assert "cannot be read" in ask("absent", "run.output_dir")[2]
