"""The process group of a single rank: every collective is done before it begins.

DeepSpeed wants a group even for one process. NCCL's would take hundreds of megabytes of device memory, and gloo's would
copy each gradient to the host and back.
"""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future

SINGLE_RANK = "artkv_single_rank"
"""The backend's name for `torch.distributed.init_process_group`; for CPU and CUDA tensors."""


# Its methods are overloaded in ways that Python cannot repeat.
_ProcessGroup: Any = dist.ProcessGroup


class SingleRankGroup(_ProcessGroup):
    """A group of one rank.

    What reduces or broadcasts in place has nothing to do; what gathers copies its input. Anything else raises, as
    torch's base class does.
    """

    def getBackendName(self) -> str:
        """As torch shows it."""
        return SINGLE_RANK

    def allreduce(self, tensors: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return _done(tensors)

    def broadcast(self, tensors: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return _done(tensors)

    def reduce(self, tensors: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return _done(tensors)

    def barrier(self, *_: Any, **__: Any) -> dist.Work:
        return _done(None)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        for (output,), value in zip(outputs, inputs, strict=True):
            output.copy_(value)
        return _done(outputs)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return self.allgather(outputs, inputs)

    def all_gather_single(self, output: Tensor, value: Tensor, *_: Any, **__: Any) -> dist.Work:
        output.copy_(value)
        return _done(output)

    _allgather_base = all_gather_single  # its name before torch 2.14


def _done(result: Any) -> dist.Work:
    future: Future[Any] = Future()
    future.set_result(result)
    return _create_work_from_future(future)


def _create(_store: dist.Store, rank: int, size: int, _timeout: timedelta) -> SingleRankGroup:
    if size != 1:
        raise ValueError(f"a group of {size} ranks; this backend is for one")
    return SingleRankGroup(rank, size)


dist.Backend.register_backend(SINGLE_RANK, _create, devices=["cpu", "cuda"])
