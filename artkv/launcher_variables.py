"""What the environment tells a process of its place among others, and of the machine.

Launchers (`deepspeed`, `torchrun`) tell each process its place through RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT; `srun` does through variables of its own. With none of them set, the world is one process.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from artkv.config.paths import user_cache
from artkv.errors import UserError

_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
# Slurm's steps are numbered from 0; from here on the numbers mean the batch script, a job's interactive shell
# and the like, which are no parallel programs.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Ports that are derived from a job's id: below Linux's ephemeral ports, which begin at 32768.
_FIRST_PORT, _NUM_PORTS = 12000, 20000
_MOST_THREADS = 4096


class Place(NamedTuple):
    """Which process this is: its rank among all, its rank on its host, and how many there are."""

    rank: int
    local_rank: int
    size: int


def launched_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place as a launcher set it, or None without a launcher.

    `deepspeed` and `torchrun` come first, since they may run under `srun` themselves, once a node. A job's
    batch script and an interactive shell have SLURM_ variables too, but no step: they are one process. A
    partial or contradictory environment is a `UserError` that names the variables.
    """
    step = _srun_step(environment)
    _check_threads(environment)
    if environment.get("MASTER_PORT"):
        _port(environment)
    if "RANK" in environment or "WORLD_SIZE" in environment:
        place = _place_from(
            environment, ("RANK", "LOCAL_RANK", "WORLD_SIZE"), _LAUNCHER_VARIABLES,
            "RANK or WORLD_SIZE is set", "unset RANK and WORLD_SIZE to run one process, or under srun",
        )  # fmt: skip
        if step is not None and place.size < step.size:
            raise UserError(
                f"environment: WORLD_SIZE={place.size} contradicts SLURM_STEP_NUM_TASKS={step.size}: each of srun's "
                "tasks would be a run of its own; unset RANK and WORLD_SIZE, or start one launcher a node"
            )
        _port(environment)
        return place
    if environment.get("LOCAL_RANK", "0") not in ("0", "-1") and step is None:
        raise UserError(
            f"environment: LOCAL_RANK={environment['LOCAL_RANK']} is set but RANK, WORLD_SIZE are not; start through "
            "`deepspeed`, `torchrun` or `srun`, or unset LOCAL_RANK to run one process"
        )
    for size in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):  # of mpirun, whose processes would each be a run of its own
        if step is None and environment.get(size, "1") != "1":
            raise UserError(
                f"environment: {size}={environment[size]:.80} is set but RANK, WORLD_SIZE are not; start through "
                f"`deepspeed`, `torchrun` or `srun` and not through mpirun, or unset {size} to run one process"
            )
    return step


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises `UserError` for what a run would find wrong with the variables of its environment."""
    place = launched_place(environment) or Place(0, 0, 1)
    local_size(environment, place.size)
    user_cache()


def _check_threads(environment: Mapping[str, str]) -> None:
    """OpenMP leaves out what it does not understand, and dies of what it cannot start."""
    text = environment.get("OMP_NUM_THREADS", "1")
    numbers = [_whole_number(part.strip()) for part in text.split(",")]
    if not all(number and number <= _MOST_THREADS for number in numbers):
        raise UserError(
            f"environment: OMP_NUM_THREADS={text:.80} is no number of threads; unset it, or give a whole number from 1 "
            f"to {_MOST_THREADS}"
        )


def _srun_step(environment: Mapping[str, str]) -> Place | None:
    """The place that `srun` gave this task, None outside of a parallel step."""
    step_id = environment.get("SLURM_STEP_ID", "")
    if not step_id:
        return None  # a batch script (which has SLURM_PROCID=0 and the job's SLURM_NTASKS), a shell of salloc
    number = _whole_number(step_id)
    if number is None:
        raise UserError(f"environment: SLURM_STEP_ID={step_id:.80} must be a whole number; start through `srun`")
    if number >= _FIRST_SPECIAL_STEP:
        return None
    place = _place_from(
        environment, _SRUN_VARIABLES, _SRUN_VARIABLES, f"SLURM_STEP_ID={step_id} is set",
        "unset SLURM_STEP_ID to run one process",
    )  # fmt: skip
    if place.size > 1 and "SLURM_PTY_PORT" in environment and os.isatty(0):
        return None  # somebody types this in a shell of `srun --pty`, whose other tasks are shells too
    return place


def _place_from(
    environment: Mapping[str, str], names: tuple[str, str, str], needed: tuple[str, ...], evidence: str, remedy: str
) -> Place:
    """Reads rank, local rank and size from the variables `names`; all of `needed` must be there."""
    missing = [name for name in needed if name not in environment]
    if missing:
        raise UserError(
            f"environment: {evidence} but {', '.join(missing)} is not; start through `deepspeed`, `torchrun` or "
            f"`srun`, or {remedy}"
        )
    told = ", ".join(f"{name}={environment[name]:.80}" for name in names)
    numbers = [number for name in names if (number := _whole_number(environment[name])) is not None]
    if len(numbers) < len(names):
        raise UserError(f"environment: {told} must be whole numbers; start through a launcher")
    place = Place(*numbers)
    if not 0 <= place.local_rank <= place.rank < place.size:
        raise UserError(f"environment: {told} do not fit together; start through a launcher")
    return place


def srun_rendezvous(environment: Mapping[str, str]) -> tuple[str, int]:
    """The host and port where the tasks of an `srun` step meet; MASTER_ADDR and MASTER_PORT override them.

    The host is that of task 0, the first of the step's nodes: SLURM_LAUNCH_NODE_IPADDR would be that of `srun`
    itself. The port follows from job, step and restart, so that jobs that share a node have ports of their own.
    """
    host = environment.get("MASTER_ADDR") or _first_host(environment)
    if environment.get("MASTER_PORT"):
        return host, _port(environment)
    numbers = [environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    job, step, restart = (_whole_number(number) or 0 for number in numbers)
    # Steps of a job and neighbouring jobs lie apart, by two primes.
    return host, _FIRST_PORT + (job * 101 + step + restart * 7919) % _NUM_PORTS


def _first_host(environment: Mapping[str, str]) -> str:
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError(
            "environment: SLURM_STEP_ID is set but SLURM_STEP_NODELIST and MASTER_ADDR are not; set MASTER_ADDR to "
            "the host of task 0"
        )
    try:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=True
        ).stdout.split()
        return hosts[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise UserError(
            f"environment: `scontrol show hostnames {nodes}` gave no host ({error}); set MASTER_ADDR to the host of "
            "task 0"
        ) from None


def _port(environment: Mapping[str, str]) -> int:
    text = environment["MASTER_PORT"]
    port = _whole_number(text)
    if port is None or not 0 < port < 65536:
        raise UserError(f"environment: MASTER_PORT={text:.80} is no port; give a number from 1 to 65535")
    return port


def _whole_number(text: str) -> int | None:
    """A number of plain digits, and None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def local_size(environment: Mapping[str, str], size: int) -> int:
    """Processes of this run on this host, as far as the launcher tells; `size` where it does not."""
    if "RANK" not in environment and _srun_step(environment) is not None:
        # The tasks on this node share its cores, unless Slurm has bound each to its own.
        is_bound = environment.get("SLURM_CPU_BIND_TYPE", "none").rstrip(":") not in ("", "none")
        return 1 if is_bound else len(environment.get("SLURM_GTIDS", "0").split(","))
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if name in environment:
            local_size = _whole_number(environment[name])
            if not local_size:
                raise UserError(
                    f"environment: {name}={environment[name]:.80} must be a whole number above 0; unset it, or start "
                    "through a launcher"
                )
            return local_size
    return size
