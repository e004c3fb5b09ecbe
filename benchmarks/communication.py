"""What ranks send each other: counted at torch's own collectives, and timed alone."""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turns import Stand

from artkv.distributed import process_group

# Of n ranks, the part of a collective's whole tensor that each rank sends in a ring.
SENT_SHARE = {
    "allreduce_": lambda n: 2 * (n - 1) / n,
    "allgather_": lambda n: (n - 1) / n,
    "_allgather_base_": lambda n: (n - 1) / n,
    "allgather_into_tensor_coalesced_": lambda n: (n - 1) / n,
    "reduce_": lambda n: (n - 1) / n,
    "_reduce_scatter_base_": lambda n: (n - 1) / n,
    "reduce_scatter_": lambda n: (n - 1) / n,
    "broadcast_": lambda n: (n - 1) / n,
    "barrier": lambda n: 0.0,
}


class StepBytes(TorchDispatchMode):
    """Counts the collectives of a step: by name, how often and the bytes of the whole tensor they are about."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.name().split("::")[1].split(".")[0]
            # Of a gathering the first argument is the whole; of the others it is what they work on.
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)]
            self.calls[name] += 1
            self.bytes[name] += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))

    def result(self) -> dict[str, tuple[int, int]]:
        """Calls and bytes by the collective's name."""
        return {name: (self.calls[name], self.bytes[name]) for name in self.calls}


def sent_bytes(collectives: dict[str, tuple[int, int]], ranks: int) -> float:
    """Bytes that each rank sends in a step."""
    return sum(SENT_SHARE[name](ranks) * size for name, (_, size) in collectives.items())


def sent_bytes_an_element(collectives: dict[str, tuple[int, int]], elements: int, element_bytes: int) -> float:
    """Bytes that each of very many ranks sends for each trainable element, with gathered weights in bf16.

    elements, element_bytes: of the trainables of the run that was counted.
    """
    total = 0.0
    for name, (_, size) in collectives.items():
        in_bf16 = 2 / element_bytes if "allgather" in name else 1.0
        total += SENT_SHARE[name](1 << 30) * size * in_bf16
    return total / elements


def run_collectives(stand: Stand, collectives: dict[str, tuple[int, int]]) -> None:
    """A step is the counted collectives alone, one of each kind's mean size as often as it was called, for ever."""
    with process_group(timeout_minutes=10) as world:
        device = world.device
        while True:
            stand.boundary(0)
            for name, (calls, size) in collectives.items():
                elements = max(1, size // calls // 4)
                tensor = torch.ones(elements, device=device)
                part = torch.ones(-(-elements // world.size), device=device)
                for _ in range(calls):
                    if "allgather" in name:
                        dist.all_gather([torch.empty_like(part) for _ in range(world.size)], part)
                    elif name == "barrier":
                        dist.barrier()
                    else:  # an all-reduce is the most that any of the others costs
                        dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
