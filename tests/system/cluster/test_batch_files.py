"""The headers and the logic of launch/*.sbatch, with a program in the place of Python that says what it was given.

The nodes have eight GPUs to be counted, so every header is taken as it stands in its file.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cluster.conftest import ENVIRONMENT
from tests.system.cluster.jobs import submit
from tests.system.cluster.mini_cluster import MiniCluster, wait_for

pytestmark = pytest.mark.system

TRAININGS = ["train.sbatch", "train_deepspeed.sbatch"]
TELL = """
echo "task $SLURM_PROCID: GPUs $CUDA_VISIBLE_DEVICES, $SLURM_CPUS_PER_TASK CPUs, $OMP_NUM_THREADS threads: $*"
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is first on the jobs' PATH."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def gpu_cluster(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    environment = {**ENVIRONMENT, "PATH": f"{programs}:{ENVIRONMENT['PATH']}"}
    del environment["OMP_NUM_THREADS"]
    with MiniCluster(tmp_path_factory.mktemp("gpus"), environment, cpus=64, gpus=8) as cluster:
        cluster.environment.pop("OMP_NUM_THREADS", None)
        yield cluster


def put_in_place_of_python(programs: Path, script: str) -> None:
    """Also in the place of the supervisor, which has tests of its own, the command alone that it would supervise."""
    command_alone = 'until [ "$1" = -- ]; do shift; done; shift; exec "$@"'
    for name, content in (("python", script), ("deepspeed", script), ("artkv", command_alone)):
        (programs / name).write_text(f"#!/bin/bash\n{content}")
        (programs / name).chmod(0o755)


@pytest.mark.parametrize(
    ("script", "tasks", "threads"),
    [("train.sbatch", 16, 8), ("train_deepspeed.sbatch", 2, 8), ("evaluate.sbatch", 8, 8), ("cache.sbatch", 8, 8)],
)
def test_headers_work_unchanged(
    gpu_cluster: MiniCluster, programs: Path, tmp_path: Path, script: str, tasks: int, threads: int
) -> None:
    put_in_place_of_python(programs, TELL)
    variables = {"OUTPUT_DIR": str(tmp_path / "run"), "CONFIG": "some config.yaml", "CHECKPOINT": "some/best"}
    job = submit(gpu_cluster, script, [], tmp_path / "log", variables, ["--set", "training.num_epochs=3"])
    job.wait_until_ended(60)
    assert job.state == "COMPLETED", job.log.read_text()
    told = sorted(job.log.read_text().splitlines())
    assert len(told) == tasks
    cpus = 64 if script == "train_deepspeed.sbatch" else 8
    for task in range(tasks):
        line = next(line for line in told if line.startswith(f"task {task}: "))
        assert f"GPUs 0,1,2,3,4,5,6,7, {cpus} CPUs, {threads} threads: " in line
        verb = script.partition(".")[0].partition("_")[0]
        last = f" --set run.output_dir={tmp_path}/run" if verb == "train" else ""
        assert line.endswith(f"--set training.num_epochs=3{last}")
        assert f" artkv {verb} " in line
        assert (" some/best " if verb == "evaluate" else " --config some config.yaml ") in line


def test_a_sweep_is_an_array_whose_tasks_are_requeued_once_they_have_saved(
    gpu_cluster: MiniCluster, programs: Path, tmp_path: Path
) -> None:
    """The signal before the time's end comes to the shell, and is passed on."""
    saves = f"""
    echo "run: $*, restart ${{SLURM_RESTART_COUNT:-0}}"
    [ "${{SLURM_RESTART_COUNT:-0}}" = 1 ] && exit 0
    trap 'kill $sleep; exit 75' TERM
    touch {tmp_path}/listens
    sleep 60 & sleep=$!
    wait
    """
    put_in_place_of_python(programs, saves)
    job = submit(gpu_cluster, "sweep.sbatch", ["--array=3"], tmp_path / "log", {"SWEEP": "some sweep.yaml"})
    wait_for((tmp_path / "listens").exists, 60, "the first start")
    job.send("--batch", "--signal=TERM")
    job.wait_until_requeued(60)
    job.start_now()
    job.wait_until_ended(60)
    assert job.state == "COMPLETED", job.log.read_text()
    told = [line for line in job.log.read_text().splitlines() if line.startswith("run: ")]
    assert told == [f"run: -m artkv sweep some sweep.yaml --run 3, restart {start}" for start in (0, 1)]


@pytest.mark.parametrize("script", TRAININGS)
def test_the_marker_alone_requeues(gpu_cluster: MiniCluster, programs: Path, tmp_path: Path, script: str) -> None:
    """Also: the next start removes the marker, and goes on from the checkpoint of the first one, if there is one."""
    output = tmp_path / "run"
    preempted_twice = f"""
    mkdir -p {output}
    [ "$SLURM_RESTART_COUNT" = 2 ] && exit 0
    [ "$SLURM_RESTART_COUNT" = 1 ] && mkdir -p {output}/checkpoints/step_00000010
    echo '{{"step": 10, "reason": "SIGUSR1", "job": "'$SLURM_JOB_ID'"}}' >{output}/preempted.json
    exit 75
    """
    put_in_place_of_python(programs, f"{TELL}{preempted_twice}")
    one_task = ["--nodes=1", "--ntasks-per-node=1"]
    arguments = ["--resume", "other/checkpoint", "--set", "run.output_dir=elsewhere"]
    job = submit(gpu_cluster, script, one_task, tmp_path / "log", {"OUTPUT_DIR": str(output)}, arguments)
    for starts in (1, 2):
        job.wait_until_requeued(60, starts)
        job.start_now()
    job.wait_until_ended(60)
    assert job.state == "COMPLETED", job.log.read_text()
    assert job.starts == 2
    assert not (output / "preempted.json").exists()
    # All starts write into one log. The last of two options counts.
    told = [line.partition(" --resume auto ")[2] for line in job.log.read_text().splitlines() if ": GPUs" in line]
    first = f"--resume other/checkpoint --set run.output_dir=elsewhere --set run.output_dir={output}"
    assert told == [first, first, f"{first} --resume auto"]


@pytest.mark.parametrize("script", TRAININGS)
def test_another_jobs_marker_neither_requeues_nor_is_removed(
    gpu_cluster: MiniCluster, programs: Path, tmp_path: Path, script: str
) -> None:
    """One that lies there at the start, and one that comes while the job runs."""
    marker = tmp_path / "run" / "preempted.json"
    marker.parent.mkdir()
    marker.write_text('{"step": 1, "job": "1000"}')
    found = tmp_path / "found"  # srun may drop what a step prints just before it is ended
    others = f"""[ $SLURM_PROCID = 0 ] || exec sleep 60
    cat {marker} >{found}
    echo '{{"step": '$SLURM_JOB_ID', "job": "'${{SLURM_JOB_ID}}0'", "job2": "1'$SLURM_JOB_ID'"}}' >{marker}
    exit 75
    """
    put_in_place_of_python(programs, others)
    job = submit(gpu_cluster, script, [], tmp_path / "log", {"OUTPUT_DIR": str(marker.parent)})
    job.wait_until_ended(60)
    assert (job.state, job.starts) == ("FAILED", 0)
    assert found.read_text() == '{"step": 1, "job": "1000"}'
    assert f'"job": "{job.number}0"' in marker.read_text()


@pytest.mark.parametrize("script", TRAININGS)
def test_a_signal_that_comes_before_python_listens_ends_nothing(
    gpu_cluster: MiniCluster, programs: Path, tmp_path: Path, script: str
) -> None:
    goes_on = tmp_path / "goes_on"
    put_in_place_of_python(programs, f"{TELL}until [ -e {goes_on} ]; do sleep 0.1; done")
    job = submit(gpu_cluster, script, [], tmp_path / "log", {"OUTPUT_DIR": str(tmp_path / "run")})
    tasks = 16 if script == "train.sbatch" else 2
    wait_for(lambda: job.log.exists() and job.log.read_text().count(": GPUs") == tasks, 60, "all tasks")
    job.send("--signal=USR1")
    goes_on.touch()
    job.wait_until_ended(60)
    assert job.state == "COMPLETED", job.log.read_text()


@pytest.mark.parametrize("script", TRAININGS)
def test_one_task_that_ends_badly_ends_the_job(
    gpu_cluster: MiniCluster, programs: Path, tmp_path: Path, script: str
) -> None:
    put_in_place_of_python(programs, "[ $SLURM_PROCID = 1 ] && exit 1; exec sleep 300")
    job = submit(gpu_cluster, script, [], tmp_path / "log", {"OUTPUT_DIR": str(tmp_path / "run")})
    job.wait_until_ended(60)
    assert job.state == "FAILED"


@pytest.mark.parametrize("script", TRAININGS)
def test_a_cancelled_job_can_save_and_is_not_requeued(
    gpu_cluster: MiniCluster, programs: Path, tmp_path: Path, script: str
) -> None:
    output = tmp_path / "run"
    saves = f"trap 'sleep 1; mkdir -p {output}; touch {output}/preempted.json; exit 75' TERM"
    put_in_place_of_python(programs, f"{saves}\n{TELL}while :; do sleep 0.1; done")
    job = submit(
        gpu_cluster, script, ["--nodes=1", "--ntasks-per-node=1"], tmp_path / "log", {"OUTPUT_DIR": str(output)}
    )
    wait_for(lambda: job.log.exists() and ": GPUs" in job.log.read_text(), 60, "the task")
    job.send()
    job.wait_until_ended(60)
    wait_for((output / "preempted.json").exists, 10, "what the task saves on SIGTERM")
    gpu_cluster.wait_until_idle()
    assert (job.state, job.starts) == ("CANCELLED", 0)
