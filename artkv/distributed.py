"""Rank, world and the few collectives that artkv needs; all of it works without a launcher.

Launchers (`deepspeed`, `torchrun`) tell each process its place through RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT. With none of them set, the world is this one process.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from artkv.errors import UserError

T = TypeVar("T")

if not torch.cuda.is_available():
    # Before DeepSpeed is imported, by whatever library: it warns on each rank when it finds no GPU unasked.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# peft imports bitsandbytes where it is installed, which then warns of kernels that it does not need.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
        """Does `action` on every rank; if it raises `UserError` on any, all ranks raise one that tells it.

        Without this the ranks that had no error would wait for the one that had, and nobody might say why.
        """
        result: list[T] = []
        message: str | None = None
        try:
            result.append(action())
        except UserError as error:
            message = str(error)
        messages = self.gather(message)
        told = {text: rank for rank, text in reversed(list(enumerate(messages))) if text is not None}
        if told:
            everywhere = len(told) == 1 and None not in messages
            lines = [text if everywhere else f"[rank {rank}] {text}" for text, rank in reversed(told.items())]
            raise UserError("\n".join(lines), on_all_ranks=True)
        return result[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` (a small picklable object) in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def launched_place(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """(rank, local rank, world size) as the launcher set them, or None without a launcher.

    A partial or contradictory environment is a `UserError` that names the variables.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    missing = [name for name in _LAUNCHER_VARIABLES if name not in environment]
    if missing:
        raise UserError(
            f"environment: RANK or WORLD_SIZE is set but {', '.join(missing)} is not; start through "
            "`deepspeed` or `torchrun`, or unset RANK and WORLD_SIZE to run one process"
        )
    try:
        rank, local_rank, size = (int(environment[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    except ValueError:
        values = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        raise UserError(f"environment: {values} must be whole numbers; start through a launcher") from None
    if not 0 <= rank < size or local_rank < 0:
        raise UserError(
            f"environment: RANK={rank}, LOCAL_RANK={local_rank} do not fit WORLD_SIZE={size}; start through a launcher",
        )
    return rank, local_rank, size


@contextmanager
def process_group(timeout_minutes: float) -> Iterator[World]:
    """Joins the run's process group (NCCL on CUDA, gloo on CPU) and leaves it properly at the end.

    A collective that waits longer than `timeout_minutes` for another rank raises.
    """
    place = launched_place(os.environ)
    rank, local_rank, size = place or (0, 0, 1)
    device = _device(local_rank)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)}
    if place is None:  # DeepSpeed needs a group even for one process; this one opens no port
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if device.type == "cuda":
        options["device_id"] = device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **options)
    try:
        yield World(rank, local_rank, size, device)
    except BaseException:
        # NCCL's shutdown may wait for peers that are still in a collective, and this rank has to end for the
        # launcher to end them.
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    # All leave together: without this barrier, one process in six died at exit (gloo on CPU).
    dist.barrier()
    dist.destroy_process_group()


def single_process() -> World:
    """The world of one process that needs no process group, for evaluating or asking without a launcher."""
    return World(0, 0, 1, _device(0))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"environment: LOCAL_RANK={local_rank} but this host shows {torch.cuda.device_count()} CUDA "
            "device(s); start at most one process a GPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
