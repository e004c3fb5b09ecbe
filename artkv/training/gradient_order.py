"""The order in which ranks hand their gradients to each other.

DeepSpeed's ZeRO-2 puts a gradient into a bucket as autograd makes it, and adds up the ranks' buckets as they are: it
takes for granted that autograd's order is the same on all ranks (DeepSpeed #1186, #2343). Here it is not. A CUDA graph
gives all gradients at once, eager layers theirs one by one, and whether a rank replays depends on the shapes that it
has seen. Then a tensor of one rank is added to another tensor of the other, and nothing tells of it.
"""

from typing import Any

import torch
import torch.distributed as dist


class OrderedReduction:
    """Has DeepSpeed's ZeRO optimizer reduce after backward, parameter by parameter in an order that all ranks share.

    A parameter that got no gradient on this rank has zeros there, since it may have one on others. A rank that is alone
    has nobody to be in order with; there DeepSpeed's way stays, which holds a gradient twice for a shorter time.

    It costs nothing where a bucket holds all that trains, as artkv fills in: that one is reduced after backward anyway.
    """

    def __init__(self, zero_optimizer: Any) -> None:
        self._optimizer = zero_optimizer
        self._finish = zero_optimizer.overlapping_partition_gradients_reduce_epilogue
        if dist.get_world_size() > 1:
            zero_optimizer.process_gradients = lambda parameter, group: None
            zero_optimizer.overlapping_partition_gradients_reduce_epilogue = self._reduce

    def _reduce(self) -> None:
        optimizer = self._optimizer
        optimizer.setup_buckets()
        for number, group in enumerate(optimizer.bit16_groups):
            for parameter in group:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.reduce_ready_partitions_and_remove_grads(parameter, number)
        self._finish()
