"""launch/ on a real Slurm and over a real ssh: two nodes, up to two ranks on each, with gloo.

Every run takes the same steps, whatever happens to it on the way, so its last checkpoint is compared byte for byte
with that of a run to which nothing happened.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from artkv.run_folder.heartbeat import Beat
from tests.system.cluster.jobs import LONGEST_WAIT, Job, shape, submit
from tests.system.cluster.mini_cluster import MiniCluster, wait_for
from tests.system.run_files import beats_of, final, final_bytes, logged_steps, progress, steps_logged

pytestmark = pytest.mark.system

NUM_EPOCHS = 8
QUESTIONS = 30
SETTINGS = [
    word
    for setting in (
        "training.batch_size=2", f"training.num_epochs={NUM_EPOCHS}", "frozen.opt=stream",
        "evaluation.each_epoch=false", "run.log_every=1", "run.checkpoint_every=6", "distributed.timeout_minutes=5",
    )
    for word in ("--set", setting)
]  # fmt: skip
# Within so many seconds a fault must have ended the job, on a machine busy with other things too; the seconds that it
# took are printed. Ranks that wait for another one do so for five minutes, so waiting is no way to pass.
FAULT = 120
# A step in the middle of the run, which takes 38 with four ranks, 70 with two.
MIDDLE = 14


ONCE = {"RESTARTS": "0"}


def train(
    cluster: MiniCluster, world: Path, output: Path, nodes: int, ranks: int, script: str = "train.sbatch", **more: str
) -> Job:
    """Submits a training to so many nodes with so many ranks on each. more: variables of the script."""
    variables = {"CONFIG": f"{world}/config.yaml", "OUTPUT_DIR": str(output), "RANKS_PER_NODE": str(ranks)} | more
    return submit(cluster, script, shape(script, nodes, ranks), output.with_name("log"), variables, SETTINGS)


def assert_completed(job: Job, output: Path) -> None:
    assert job.state == "COMPLETED", job.log.read_text()
    assert_each_question_seen_once_an_epoch(output)


def assert_each_question_seen_once_an_epoch(output: Path) -> None:
    steps = logged_steps(output)
    assert steps == list(range(1, steps[-1] + 1)), "a step is missing, or was logged twice"
    assert progress(output)["questions_seen"] == NUM_EPOCHS * QUESTIONS
    assert not (output / "preempted.json").exists()


@pytest.fixture(scope="module")
def four_local_ranks(cluster: MiniCluster, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four ranks on one machine, to which nothing happened."""
    output = tmp_path_factory.mktemp("local") / "run"
    result = cluster.on(
        "head",
        ["bash", "launch/train_local.sh", f"{tiny_world}/config.yaml", "--set", f"run.output_dir={output}", *SETTINGS],
        seconds=LONGEST_WAIT,
        environment={"RANKS": "4"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert_each_question_seen_once_an_epoch(output)
    return output


def train_over_pdsh(
    cluster: MiniCluster, world: Path, folder: Path, settings: Sequence[str] = SETTINGS, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a training of two nodes with a rank on each through train_multinode.sh, in `folder`/run."""
    (folder / "hostfile").write_text("n1 slots=1\nn2 slots=1\n")
    (folder / "deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    output = ["--set", f"run.output_dir={folder / 'run'}"]
    return cluster.on(
        "head", ["bash", "launch/train_multinode.sh", f"{world}/config.yaml", *output, *settings],
        seconds=LONGEST_WAIT,
        environment={"HOSTFILE": f"{folder}/hostfile", "DS_ENV_FILE": f"{folder}/deepspeed_env"} | more,
    )  # fmt: skip


def kill_a_rank(cluster: MiniCluster) -> None:
    """On n2. The rank alone: the worker that reads its pictures is left to itself."""
    # [v] keeps pkill's caller from matching.
    cluster.output("n2", ["pkill", "--signal=KILL", "--oldest", "--full", "--", "-m artk[v] "])


@pytest.fixture(scope="module")
def pdsh_run(cluster: MiniCluster, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over pdsh to which nothing happened."""
    folder = tmp_path_factory.mktemp("pdsh")
    result = train_over_pdsh(cluster, tiny_world, folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run"


def test_pdsh_trains_on_two_nodes(pdsh_run: Path) -> None:
    assert_each_question_seen_once_an_epoch(pdsh_run)


def test_a_run_over_pdsh_keeps_a_job_out_of_its_folder_and_ends_with_a_killed_worker(
    cluster: MiniCluster, tiny_world: Path, tmp_path: Path, fault_seconds: dict[str, float]
) -> None:
    output = tmp_path / "run"
    endless = [*SETTINGS, "--set", "training.num_epochs=1000", "--set", "dataset.workers=2"]
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(train_over_pdsh, cluster, tiny_world, tmp_path, endless, **ONCE)
        wait_for(lambda: run.done() or steps_logged(output) > 0, LONGEST_WAIT, "the first step")
        variables = {"CONFIG": f"{tiny_world}/config.yaml", "OUTPUT_DIR": str(output)}
        options = [*shape("train.sbatch", 1, 1), "--nodelist=n2"]  # the lock's holder is rank 0, on n1
        job = submit(cluster, "train.sbatch", options, tmp_path / "log", variables, endless)
        fault_seconds["train.sbatch, 1 x 1: its run folder is in use"] = job.wait_until_ended()
        assert job.state == "FAILED"
        assert f"artkv: run.output_dir = {output}: is in use by" in job.log.read_text()
        step = steps_logged(output)
        wait_for(lambda: run.done() or steps_logged(output) > step, 20, "a step after it")
        assert not run.done(), run.result().stdout + run.result().stderr
        kill_a_rank(cluster)
        fault_seconds["train_multinode.sh, 2 x 1: a rank killed"] = wait_for(run.done, FAULT, "the end of the run")
    assert run.result().returncode != 0


@pytest.mark.parametrize("script", ["train.sbatch", "train_deepspeed.sbatch"])
def test_a_preempted_run_is_requeued_and_ends_with_train_locals_bytes(
    cluster: MiniCluster,
    tiny_world: Path,
    tmp_path: Path,
    four_local_ranks: Path,
    script: str,
    fault_seconds: dict[str, float],
) -> None:
    output = tmp_path / "run"
    job = train(cluster, tiny_world, output, 2, 2, script)
    job.wait_for_step(output, MIDDLE)
    job.send("--signal=USR1")  # what --signal=USR1@180 does: to every process of the step
    fault_seconds[f"{script}, 2 x 2: USR1, until requeued"] = job.wait_until_requeued(FAULT)
    assert (output / "preempted.json").exists()
    stopped_at = progress(output)["step"]
    assert MIDDLE <= stopped_at < logged_steps(four_local_ranks)[-1]
    assert logged_steps(output)[-1] == stopped_at, "a step that was done was not saved"
    job.start_now()
    job.wait_until_ended()
    assert_completed(job, output)
    assert final_bytes(output) == final_bytes(four_local_ranks)


@pytest.mark.parametrize("script", ["train.sbatch", "train_deepspeed.sbatch"])
def test_a_killed_worker_ends_the_job(
    cluster: MiniCluster, tiny_world: Path, tmp_path: Path, script: str, fault_seconds: dict[str, float]
) -> None:
    output = tmp_path / "run"
    job = train(cluster, tiny_world, output, 2, 1, script, **ONCE)
    job.wait_for_step(output, MIDDLE)
    kill_a_rank(cluster)
    fault_seconds[f"{script}, 2 x 1: a rank killed"] = job.wait_until_ended(FAULT)
    assert job.state == "FAILED"


@pytest.mark.parametrize("script", ["train.sbatch", "train_multinode.sh"])
def test_a_killed_and_a_stopped_worker_are_started_again_in_the_same_job(
    cluster: MiniCluster,
    tiny_world: Path,
    tmp_path: Path,
    pdsh_run: Path,
    script: str,
    fault_seconds: dict[str, float],
) -> None:
    """The rank is on n2, the supervisor on another host: of a stopped one it sees nothing but its silence."""
    output = tmp_path / "run"
    shorter = {"SILENCE": "10"}
    with ThreadPoolExecutor(1) as pool:
        if script == "train_multinode.sh":
            job = pool.submit(train_over_pdsh, cluster, tiny_world, tmp_path, SETTINGS, **shorter)
        else:
            job = pool.submit(
                lambda: train(cluster, tiny_world, output, 2, 1, script, **shorter).wait_until_ended(2 * LONGEST_WAIT)
            )
        for number, step in (("KILL", MIDDLE), ("STOP", 2 * MIDDLE)):
            wait_for(lambda step=step: job.done() or steps_logged(output) >= step, LONGEST_WAIT, f"step {step}")
            before = beats_of(output)
            cluster.output("n2", ["pkill", f"--signal={number}", "--oldest", "--full", "--", "-m artk[v] "])
            fault_seconds[f"{script}, 2 x 1: a rank gets {number}, until the next step"] = wait_for(
                lambda before=before: job.done() or has_gone_on(before, beats_of(output)), FAULT, "a step after it"
            )
            assert not job.done(), (tmp_path / "log").read_text()
        job.result()
    assert_each_question_seen_once_an_epoch(output)
    assert final_bytes(output) == final_bytes(pdsh_run)
    causes = [json.loads(line)["cause"] for line in (output / "restarts.jsonl").read_text().splitlines()]
    assert len(causes) == 2
    assert "ended without a word" in causes[0]
    assert " is silent for 1" in causes[1]


def has_gone_on(before: Mapping[int, Beat], now: Mapping[int, Beat]) -> bool:
    """Whether all ranks are other processes than before, and have done a step."""
    return now.keys() == before.keys() and all(
        (beat.pid_start, beat.pid) != (before[rank].pid_start, before[rank].pid) and beat.step > beat.first_step
        for rank, beat in now.items()
    )


def test_a_rank_that_fails_before_the_ranks_meet_ends_the_job(
    cluster: MiniCluster, tiny_world: Path, tmp_path: Path, fault_seconds: dict[str, float]
) -> None:
    cluster.output("n2", ["mount", "-t", "tmpfs", "tmpfs", str(tiny_world)])  # the shared folder is missing there
    try:
        job = train(cluster, tiny_world, tmp_path / "run", 2, 1)
        wait_for(lambda: job.state == "RUNNING", 10, "the start of the job")
        fault_seconds["train.sbatch, 2 x 1: a rank fails at its start (from the job's start)"] = job.wait_until_ended(
            FAULT
        )
    finally:
        cluster.output("n2", ["umount", str(tiny_world)])
    assert job.state == "FAILED"
    assert f"artkv: [rank 1] config {tiny_world}/config.yaml: cannot be read" in job.log.read_text()


def test_a_lost_node_requeues_the_job_which_then_finishes(
    cluster: MiniCluster, tiny_world: Path, tmp_path: Path, pdsh_run: Path, fault_seconds: dict[str, float]
) -> None:
    output = tmp_path / "run"
    job = train(cluster, tiny_world, output, 2, 1)
    job.wait_for_step(output, MIDDLE)
    cluster.kill("n2")
    fault_seconds["train.sbatch, 2 x 1: a node lost, until requeued"] = job.wait_until_requeued(FAULT)
    cluster.boot("n2")
    job.start_now()
    job.wait_until_ended()
    assert_completed(job, output)
    assert final_bytes(output) == final_bytes(pdsh_run)


def test_cancelled_and_submitted_to_other_nodes_it_goes_on(
    cluster: MiniCluster,
    tiny_world: Path,
    tmp_path: Path,
    pdsh_run: Path,
    fault_seconds: dict[str, float],
) -> None:
    """On two nodes, then on one, then on two again, with a rank on each."""
    output = tmp_path / "run"
    for nodes, step in ((2, 10), (1, 22)):
        job = train(cluster, tiny_world, output, nodes, 1)
        job.wait_for_step(output, step)
        job.send()
        fault_seconds[f"train.sbatch, {nodes} x 1: scancel"] = job.wait_until_ended(FAULT)
        assert job.state == "CANCELLED"
        assert job.starts == 0
    assert "gradient accumulation is 2 on 1 ranks" in job.log.read_text()
    job = train(cluster, tiny_world, output, 2, 1)
    job.wait_until_ended()
    assert_completed(job, output)
    for file in ("adapter.safetensors", "optimizer.safetensors"):
        one, other = load_file(final(output) / file), load_file(final(pdsh_run) / file)
        difference = max((one[name] - other[name]).abs().max().item() for name in one)
        # fp32. The norm for clipping is summed in another order on one rank.
        assert difference < 1e-6
        assert all(torch.isfinite(tensor).all() for tensor in one.values())


def test_evaluate_sbatch_scores_with_and_without_the_prefix(
    cluster: MiniCluster, tiny_world: Path, tmp_path: Path, pdsh_run: Path
) -> None:
    variables = {"CHECKPOINT": str(pdsh_run), "SPLIT": "val"}
    job = submit(cluster, "evaluate.sbatch", shape("evaluate.sbatch", 2, 1), tmp_path / "log", variables)
    job.wait_until_ended()
    assert job.state == "COMPLETED", job.log.read_text()
    assert "shuffled" in job.log.read_text()
