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

    What reduces or broadcasts in place has nothing to do; what gathers or scatters copies its input. Sending raises, as
    in torch's base class.
    """

    def getBackendName(self) -> str:
        """As torch shows it."""
        return SINGLE_RANK

    def allreduce(self, tensors: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return _done(tensors)

    allreduce_coalesced = broadcast = reduce = allreduce

    def barrier(self, *_: Any, **__: Any) -> dist.Work:
        return _done(None)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return _copied([output for (output,) in outputs], inputs)

    gather = allgather

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], *_: Any, **__: Any) -> dist.Work:
        return _copied(outputs, [value for (value,) in inputs])

    scatter = reduce_scatter

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], *_: Any, **__: Any) -> dist.Work:
        return _copied(outputs, inputs)

    allgather_into_tensor_coalesced = reduce_scatter_tensor_coalesced = alltoall

    def all_gather_single(self, output: Tensor, value: Tensor, *_: Any, **__: Any) -> dist.Work:
        return _copied([output], [value])

    reduce_scatter_single = all_to_all_single = all_gather_single
    # Their names before torch 2.14.
    _allgather_base = _reduce_scatter_base = alltoall_base = all_gather_single
    all_gather_single_coalesced = reduce_scatter_single_coalesced = alltoall


def _copied(outputs: list[Tensor], inputs: list[Tensor]) -> dist.Work:
    for output, value in zip(outputs, inputs, strict=True):
        output.copy_(value.view_as(output))
    return _done(outputs)


def _done(result: Any) -> dist.Work:
    future: Future[Any] = Future()
    future.set_result(result)
    return _create_work_from_future(future)


def _create(_store: dist.Store, rank: int, size: int, _timeout: timedelta) -> SingleRankGroup:
    if size != 1:
        raise ValueError(f"a group of {size} ranks; this backend is for one")
    return SingleRankGroup(rank, size)


dist.Backend.register_backend(SINGLE_RANK, _create, devices=["cpu", "cuda"])
