"""World, ranks and the few collectives that artkv needs; all of it works without a launcher."""

import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from artkv.devices import check_devices, device_name, rank_device
from artkv.errors import Preempted, RunFailed, UserError, shared_memory_message, summary
from artkv.launcher_variables import Place, check_environment, launched_place, local_size, srun_rendezvous
from artkv.single_rank import SINGLE_RANK

T = TypeVar("T")

_SECONDS_FOR_TORCHS_OWN_MESSAGE = 2.0

# Set on an exception that every rank knows of: none of them meets the others about it once more.
_KNOWN = "artkv_known_on_all_ranks"


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


class ToHost:
    """Numbers on their way from the device to the host, which nobody waits for until they are read.

    On CUDA the copy is queued where this is made, and reading waits for that point of the queue alone: what was
    queued afterwards goes on.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """The numbers, flattened."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._numbers.flatten().tolist()
        return numbers


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


@contextmanager
def process_group(timeout_minutes: float, on_cpu: bool = False) -> Iterator[World]:
    """Joins the run's process group (NCCL on CUDA, gloo on CPU, neither for one rank) and leaves it properly.

    on_cpu: leave the GPUs alone, where there are any.

    A meeting that waits longer than `timeout_minutes` for another rank, the first one too, raises. Sets the
    launcher variables where `srun` started this process, because DeepSpeed reads them.
    """
    check_environment(os.environ)
    rank, local_rank, size = launched_place(os.environ) or Place(0, 0, 1)
    timeout = timedelta(minutes=timeout_minutes)
    device = torch.device("cpu") if on_cpu else rank_device(local_rank)
    if "OMP_NUM_THREADS" not in os.environ:  # an offloaded optimizer and digests compute on the CPU, too
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size(os.environ, size)))
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
        if (memory := shared_memory_message(str(error))) is not None:
            raise RunFailed(f"rank {rank} of {size} on {socket.gethostname()}: {memory}") from None
        reason = summary(error)
        if "address already in use" in reason.lower():
            raise RunFailed(
                f"rank {rank} of {size} on {socket.gethostname()} cannot listen at {where} (MASTER_ADDR, MASTER_PORT): "
                "the port is in use, by another run perhaps; give this one another: `deepspeed` and `torchrun` take "
                "--master_port, srun's tasks and launch/ the variable MASTER_PORT"
            ) from None
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

    device: by default the first CUDA device, or the CPU. A CUDA device becomes the current one, of
    which streams and events are.
    """
    if device is None:
        device = rank_device(0)
    elif device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return World(0, 0, 1, device)


def _meet(rank: int, size: int, device: torch.device, timeout: timedelta) -> dist.Store:
    """The store through which the ranks find each other, once all are there with a device of their own."""
    if size == 1:  # DeepSpeed needs a group even for one process; this store opens no port
        return dist.HashStore()
    store = _open_store(rank, size, timeout)
    store.set_timeout(timeout)
    store.set(f"artkv/device/{rank}", json.dumps([device_name(device), socket.gethostname()]))
    devices = [tuple(json.loads(store.get(f"artkv/device/{other}"))) for other in range(size)]
    check_devices(devices)
    return store


def _open_store(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """Rank 0's store; where the ranks meet at the loopback address, nobody else can reach it or them."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if host == "localhost" or host.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun has a store already
            try:
                listener = socket.create_server((host, int(port)))
            except OSError as error:
                raise dist.DistNetworkError(f"{error.strerror}") from None
            # torch's own socket would listen on all addresses.
            return dist.TCPStore(host, int(port), size, True, timeout, master_listen_fd=listener.detach())
    return _in_time(lambda: next(dist.rendezvous("env://", timeout=timeout))[0], timeout)


def _in_time(meet: Callable[[], dist.Store], timeout: timedelta) -> dist.Store:
    """What `meet` returns. Where another program listens at the port and says nothing, torch waits without an end."""
    ended: queue.Queue[dist.Store | BaseException] = queue.Queue()

    def run() -> None:
        try:
            ended.put(meet())
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=run, name="rendezvous", daemon=True).start()
    try:
        result = ended.get(timeout=timeout.total_seconds() + _SECONDS_FOR_TORCHS_OWN_MESSAGE)
    except queue.Empty:
        raise dist.DistNetworkError(_why_silent()) from None
    if isinstance(result, BaseException):
        raise result
    return result


def _why_silent() -> str:
    """Why there was no answer at MASTER_ADDR and MASTER_PORT, as far as it is seen now."""
    try:
        with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=2):
            return "something listens there and gives no answer: is it another program?"
    except socket.gaierror as error:
        return f"MASTER_ADDR is the name of no host ({error.strerror})"
    except ConnectionRefusedError:
        return "nobody listens there: was rank 0 started?"
    except OSError as error:
        return f"it is not reached ({error.strerror or error})"
