"""Where a process finds its place, and which variables make no sense."""

import os
import subprocess

import pytest

from artkv.errors import UserError
from artkv.launcher_variables import check_environment, launched_place, local_size, srun_rendezvous

COMPLETE = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip

# What Slurm 22.05 sets in a batch script on two nodes with two tasks each, and in the third of srun's tasks there.
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
SRUN_TASK = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_GTIDS": "2,3",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}  # fmt: skip
NODE_LAUNCHER = SRUN_TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}


def test_a_launchers_place_is_read_and_none_is_one_process() -> None:
    assert launched_place(COMPLETE) == (3, 1, 4)
    assert launched_place({"MASTER_ADDR": "node0"}) is None


def test_a_task_of_srun_knows_its_place_but_a_batch_script_and_shells_are_one_process() -> None:
    assert launched_place(SRUN_TASK) == (2, 0, 4)
    assert launched_place(BATCH_SCRIPT) is None
    # What `salloc` gives its shell: by itself, and in an interactive step.
    assert launched_place({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]"}) is None
    assert launched_place(SRUN_TASK | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_node_launcher_inside_srun_has_the_last_word() -> None:
    assert launched_place(NODE_LAUNCHER | COMPLETE) == (3, 1, 4)


def test_the_shell_of_srun_pty_is_one_process_but_the_tasks_of_an_srun_in_it_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    assert launched_place(SRUN_TASK | {"SLURM_PTY_PORT": "4711"}) is None
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    assert launched_place(SRUN_TASK | {"SLURM_PTY_PORT": "4711"}) == (2, 0, 4)


@pytest.mark.parametrize(
    ("environment", "change", "message"),
    [
        (COMPLETE, {"MASTER_PORT": None, "LOCAL_RANK": None}, "LOCAL_RANK, MASTER_PORT is not"),
        (COMPLETE, {"RANK": "4"}, "RANK=4, LOCAL_RANK=1, WORLD_SIZE=4 do not fit together"),
        (COMPLETE, {"LOCAL_RANK": "4"}, "RANK=3, LOCAL_RANK=4, WORLD_SIZE=4 do not fit together"),
        (COMPLETE, {"WORLD_SIZE": "four"}, "RANK=3, LOCAL_RANK=1, WORLD_SIZE=four must be whole numbers"),
        (COMPLETE, {"RANK": None}, "RANK is not"),
        (COMPLETE, {"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({}, {"LOCAL_RANK": "1"}, "LOCAL_RANK=1 is set but RANK, WORLD_SIZE are not"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=2 is set but RANK"),
        ({}, {"PMI_SIZE": "4"}, "PMI_SIZE=4 is set but RANK, WORLD_SIZE are not; start .* and not through mpirun"),
        (SRUN_TASK, {"SLURM_PROCID": None, "SLURM_LOCALID": None}, "SLURM_PROCID, SLURM_LOCALID is not"),
        (SRUN_TASK, {"SLURM_STEP_NUM_TASKS": None}, "SLURM_STEP_ID=0 is set but SLURM_STEP_NUM_TASKS is not"),
        (SRUN_TASK, {"SLURM_PROCID": "4"}, "SLURM_PROCID=4, SLURM_LOCALID=0, SLURM_STEP_NUM_TASKS=4 do not fit"),
        (SRUN_TASK, {"SLURM_STEP_ID": "batch"}, "SLURM_STEP_ID=batch must be a whole number"),
        (
            SRUN_TASK,
            COMPLETE | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
            "WORLD_SIZE=1 contradicts SLURM_STEP_NUM_TASKS=4",
        ),
    ],
)
def test_a_partial_or_contradictory_environment_names_its_variables(
    environment: dict, change: dict, message: str
) -> None:
    changed = {name: value for name, value in (environment | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        launched_place(changed)


def test_tasks_of_srun_meet_on_the_steps_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def scontrol(command: list[str], **options: object) -> subprocess.CompletedProcess:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "n1\nn2\n")

    monkeypatch.setattr(subprocess, "run", scontrol)
    host, port = srun_rendezvous(SRUN_TASK | {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_NODELIST": "n[0-2]"})
    assert asked == [["scontrol", "show", "hostnames", "n[1-2]"]]
    assert host == "n1"
    # Another step, job or start has another port; all lie below the ephemeral ones.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    others = [
        srun_rendezvous(SRUN_TASK | dict(zip(names, map(str, numbers), strict=True)))[1]
        for numbers in ((8, 0, 0), (7, 1, 0), (7, 0, 1), (67108863, 12, 3))
    ]
    assert len({port, *others}) == 5
    assert all(12000 <= number < 32000 for number in (port, *others))
    assert srun_rendezvous(SRUN_TASK | {"MASTER_ADDR": "n9", "MASTER_PORT": "1234"}) == ("n9", 1234)
    assert srun_rendezvous(SRUN_TASK | {"SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"


def test_without_scontrol_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="set MASTER_ADDR to the host of task 0"):
        srun_rendezvous(SRUN_TASK)
    with pytest.raises(UserError, match="MASTER_PORT=x is no port"):
        srun_rendezvous(SRUN_TASK | {"MASTER_ADDR": "n1", "MASTER_PORT": "x"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LOCAL_WORLD_SIZE", "two"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("LOCAL_SIZE", "-1"),
        ("OMP_NUM_THREADS", "abc"),
        ("OMP_NUM_THREADS", "0"),
        ("OMP_NUM_THREADS", "1e3"),
        ("OMP_NUM_THREADS", "1000000000"),
        ("OMP_NUM_THREADS", "4,x"),
        ("OMP_NUM_THREADS", ""),
        ("MASTER_PORT", "9" * 5000),
        ("MASTER_PORT", "-1"),
        ("MASTER_PORT", "29500; rm"),
        ("WORLD_SIZE", "9" * 5000),
        ("WORLD_SIZE", "1_0"),
    ],
)
def test_a_number_that_is_none_is_told(variable: str, value: str) -> None:
    with pytest.raises(UserError, match=f"environment: .*{variable}={value[:20]}") as caught:
        check_environment(COMPLETE | {variable: value})
    assert len(str(caught.value)) < 500


def test_sensible_numbers_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({}, {"OMP_NUM_THREADS": "8"}, {"OMP_NUM_THREADS": "4, 2"}, {"LOCAL_WORLD_SIZE": "2"}):
        check_environment(COMPLETE | changes)
    assert local_size(COMPLETE | {"LOCAL_WORLD_SIZE": "2"}, 4) == 2
    assert local_size(COMPLETE, 4) == 4
    assert srun_rendezvous(SRUN_TASK | {"SLURM_JOB_ID": "9" * 5000, "MASTER_ADDR": "n1"})[1] == 12000


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has a number and no name."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "ARTKV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="environment: HOME is not set, and .* set HOME or ARTKV_CACHE"):
        check_environment({})
    monkeypatch.setenv("ARTKV_CACHE", "/tmp/cache")
    check_environment({})
