"""Rank, world and the few collectives that artkv needs; all of it works without a launcher.

Launchers (`deepspeed`, `torchrun`) tell each process its place through RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; `srun` does through variables of its own. With none of them set, the world is
this one process.
"""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from artkv.errors import Preempted, RunFailed, UserError
from artkv.single_rank import SINGLE_RANK

T = TypeVar("T")

# Set on an exception that every rank knows of: none of them meets the others about it once more.
_KNOWN = "artkv_known_on_all_ranks"

if not torch.cuda.is_available():
    # Before DeepSpeed is imported, by whatever library: it warns on each rank when it finds no GPU unasked.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
# Slurm's steps are numbered from 0; from here on the numbers mean the batch script, a job's interactive shell
# and the like, which are no parallel programs.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Ports that are derived from a job's id: below Linux's ephemeral ports, which begin at 32768.
_FIRST_PORT, _NUM_PORTS = 12000, 20000


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run, and the device it computes on."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on rank 0, which alone writes shared files and talks to the console."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums `tensor` over all ranks in place and returns it; stays on the device, no host sync."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: T) -> T:
        """Rank 0's `value` (a small picklable object) on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """Does `action` on every rank; if it raises on any, all ranks raise.

        Without this the ranks that had no error would wait for the one that had, and nobody might say why. A
        `UserError` is told by all of them alike. Of any other error, the ranks that had it raise it as it is, the
        others a `RunFailed` that names rank and message. `action` may gather, and do others together, itself.
        """
        result: list[T] = []
        failure: Exception | None = None
        try:
            result.append(action())
        except Exception as error:
            if hasattr(error, _KNOWN):
                raise
            failure = error
        outcomes = self._exchange(_Outcome.of(failure))
        if failure is not None and not isinstance(failure, UserError):
            raise _known(failure)
        _raise_failures(outcomes)
        return result[0]

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Does `action` on rank 0 alone, None on the others; if it raises, all ranks raise, as `together` does."""
        return self.together(lambda: action() if self.is_main else None)

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` (a small picklable object) in the order of ranks, on every rank."""
        values = self._exchange(value)
        _raise_failures(values)  # of a rank that has left an action which goes on here
        return values

    def _exchange(self, value: T) -> list[T]:
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


class _Outcome(NamedTuple):
    """How an action that is done together ended on one rank: with a message, or well."""

    message: str | None
    is_user_error: bool

    @staticmethod
    def of(error: Exception | None) -> "_Outcome":
        if error is None or isinstance(error, UserError):
            return _Outcome(None if error is None else str(error), True)
        name = "" if isinstance(error, RunFailed) else f"{type(error).__name__}: "
        return _Outcome(f"{name}{error}", False)


def _known(error: Exception) -> Exception:
    setattr(error, _KNOWN, True)
    return error


def _raise_failures(outcomes: list[Any]) -> None:
    """Raises what all ranks raise if some of them failed; values of ranks that gather may be among the outcomes."""
    failed = {
        rank: outcome.message
        for rank, outcome in enumerate(outcomes)
        if isinstance(outcome, _Outcome) and not outcome.is_user_error
    }
    if failed:
        raise _known(RunFailed("\n".join(f"rank {rank} failed: {message}" for rank, message in failed.items())))
    messages = [outcome.message if isinstance(outcome, _Outcome) else None for outcome in outcomes]
    told = {text: rank for rank, text in reversed(list(enumerate(messages))) if text is not None}
    if told:
        everywhere = len(told) == 1 and None not in messages
        lines = [text if everywhere else f"[rank {rank}] {text}" for text, rank in reversed(told.items())]
        raise _known(UserError("\n".join(lines), on_all_ranks=True))


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
    return step


def _srun_step(environment: Mapping[str, str]) -> Place | None:
    """The place that `srun` gave this task, None outside of a parallel step."""
    step_id = environment.get("SLURM_STEP_ID", "")
    if not step_id:
        return None  # a batch script (which has SLURM_PROCID=0 and the job's SLURM_NTASKS), a shell of salloc
    if not step_id.isdecimal():
        raise UserError(f"environment: SLURM_STEP_ID={step_id} must be a whole number; start through `srun`")
    if int(step_id) >= _FIRST_SPECIAL_STEP:
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
    values = {name: environment[name] for name in names}
    told = ", ".join(f"{name}={value}" for name, value in values.items())
    try:
        place = Place(*(int(value) for value in values.values()))
    except ValueError:
        raise UserError(f"environment: {told} must be whole numbers; start through a launcher") from None
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
    job, step, restart = (int(number) if number.isdecimal() else 0 for number in numbers)
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
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise UserError(f"environment: MASTER_PORT={text} is no port; give a number from 1 to 65535")
    return int(text)


@contextmanager
def process_group(timeout_minutes: float) -> Iterator[World]:
    """Joins the run's process group (NCCL on CUDA, gloo on CPU, neither for one rank) and leaves it properly.

    A meeting that waits longer than `timeout_minutes` for another rank, the first one too, raises. Sets the
    launcher variables where `srun` started this process, because DeepSpeed reads them.
    """
    rank, local_rank, size = launched_place(os.environ) or Place(0, 0, 1)
    timeout = timedelta(minutes=timeout_minutes)
    device = rank_device(local_rank)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_size(os.environ, size)))
    if size > 1 and "RANK" not in os.environ:
        host, port = srun_rendezvous(os.environ)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    if device.type == "cuda" or size > 1:
        # DeepSpeed takes it for the device's number.
        os.environ["LOCAL_RANK"] = str(device.index if device.type == "cuda" else local_rank)
    # DeepSpeed makes groups of its own without a timeout, which then have torch's: half an hour with gloo.
    dist.distributed_c10d.default_pg_timeout = timeout
    dist.distributed_c10d.default_pg_nccl_timeout = timeout
    backend = SINGLE_RANK if size == 1 else "nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
    try:
        store = _meet(rank, size, device, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout, **options)
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).partition("\n")[0]
        raise RunFailed(
            f"rank {rank} of {size} on {socket.gethostname()} did not meet the others at {where} (MASTER_ADDR, "
            f"MASTER_PORT) within {timeout_minutes:g} minutes (distributed.timeout_minutes): {reason}; look at the "
            "first error of the other ranks, and whether that port can be reached from every node"
        ) from None
    try:
        yield World(rank, local_rank, size, device)
    except Preempted:  # all ranks are here
        dist.barrier()
        dist.destroy_process_group()
        raise
    except BaseException:
        # NCCL's shutdown may wait for peers that are still in a collective, and this rank has to end for the
        # launcher to end them.
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    # All leave together: without this barrier, one process in six died at exit (gloo on CPU).
    dist.barrier()
    dist.destroy_process_group()


def single_process(device: torch.device | None = None) -> World:
    """The world of one process that needs no process group, for evaluating or asking without a launcher.

    device: by default the first CUDA device, or the CPU.
    """
    return World(0, 0, 1, rank_device(0) if device is None else device)


def _local_size(environment: Mapping[str, str], size: int) -> int:
    """Processes of this run on this host, as far as the launcher tells; `size` where it does not."""
    if "RANK" not in environment and _srun_step(environment) is not None:
        # The tasks on this node share its cores, unless Slurm has bound each to its own.
        is_bound = environment.get("SLURM_CPU_BIND_TYPE", "none").rstrip(":") not in ("", "none")
        return 1 if is_bound else len(environment.get("SLURM_GTIDS", "0").split(","))
    return int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", size)))


def _meet(rank: int, size: int, device: torch.device, timeout: timedelta) -> dist.Store:
    """The store through which the ranks find each other, once all are there with a device of their own."""
    if size == 1:  # DeepSpeed needs a group even for one process; this store opens no port
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    store.set(f"artkv/device/{rank}", json.dumps([_device_name(device), socket.gethostname()]))
    devices = [tuple(json.loads(store.get(f"artkv/device/{other}"))) for other in range(size)]
    check_devices(devices)
    return store


def check_devices(devices: list[tuple[str, str]]) -> None:
    """Raises `UserError` unless all ranks' devices are of one kind and no GPU is two ranks'.

    devices: by rank, the device's name ("cpu", or what is unique to the GPU) and the host's.
    """
    on_cpu = {name == "cpu" for name, _ in devices}
    if len(on_cpu) > 1:
        rank = next(rank for rank, (name, _) in enumerate(devices) if name == "cpu")
        raise UserError(
            f"rank {rank} on {devices[rank][1]} finds no CUDA device, others have one; look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES there",
            on_all_ranks=True,
        )
    if True in on_cpu:
        return
    first_rank: dict[str, int] = {}
    for rank, (name, host) in enumerate(devices):
        other = first_rank.setdefault(name, rank)
        if other != rank:
            raise UserError(
                f"ranks {other} and {rank} on {host} have the same GPU; start at most one process a GPU, and under "
                "srun give each task its own (--gpus-per-task=1) or all tasks all (--gres=gpu:N)",
                on_all_ranks=True,
            )


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    part = visible if visible.startswith("MIG-") else ""  # parts of one GPU may all tell that GPU's id
    return f"{torch.cuda.get_device_properties(device).uuid}{part}"


def rank_device(local_rank: int) -> torch.device:
    """The device of this host's rank of that number; raises UserError where there are fewer GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # Where each task sees its own GPU alone, as with `srun --gpus-per-task=1`, that one is number 0 to all. Whether
    # it is not the same one is found out when the ranks meet.
    index = 0 if count == 1 else local_rank
    if index >= count:
        raise UserError(
            f"environment: LOCAL_RANK={local_rank} but this host shows {count} CUDA device(s); start at most one "
            "process a GPU"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
