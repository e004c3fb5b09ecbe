"""Device memory of what DeepSpeed keeps of the trainables, and of quantised blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch

_FP32_BYTES = 4
# Of each 4-bit layer: 16 values of the code, 256 of the scales' code, their offset; fp32.
_NF4_TABLES_BYTES = (16 + 256 + 1) * 4


@dataclass(frozen=True)
class TrainableMemory:
    """What DeepSpeed keeps of the trainables, bytes per rank; see `trainable_memory`.

    weights_bytes: in the compute dtype. masters_bytes, moments_bytes, gradients_bytes: fp32.
    buckets_bytes: gradients on their way between ranks.
    host_bytes: what lies in host memory where the optimizer is offloaded.
    """

    num_elements: int
    weights_bytes: int
    masters_bytes: int
    moments_bytes: int
    gradients_bytes: int
    buckets_bytes: int
    host_bytes: int

    @property
    def device_bytes(self) -> int:
        """All but what lies on the host."""
        return self.weights_bytes + self.masters_bytes + self.moments_bytes + self.gradients_bytes + self.buckets_bytes


def trainable_memory(
    trainable_shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, world_size: int, deepspeed: Mapping[str, Any]
) -> TrainableMemory:
    """Memory of DeepSpeed 0.19's ZeRO stage 2 with fp32 gradient accumulation.

    Flat weights are whole on each rank; masters, both Adam moments and the accumulated fp32 gradients are divided
    among ranks. Buckets: one of `reduce_bucket_size` elements, two with `overlap_comm`, in the compute dtype; where
    `communication_data_type` is fp32 and that is not, a copy of one, or of a parameter that is larger, in fp32 and
    another in the compute dtype while it is reduced. Several ranks reduce after backward, until when gradients that
    have no room in a bucket wait for it. Weights are gathered in place. Padding to the alignment, bytes a group, is
    left out.

    deepspeed: the filled config.
    """
    zero = deepspeed["zero_optimization"]
    num_elements = sum(prod(shape) for shape in trainable_shapes.values())
    partition = -(-num_elements // world_size)
    on_host = zero.get("offload_optimizer", {}).get("device", "none") == "cpu"
    largest = max((prod(shape) for shape in trainable_shapes.values()), default=0)
    bucket_elements = int(zero["reduce_bucket_size"])
    buckets = bucket_elements * dtype.itemsize * (2 if zero.get("overlap_comm", False) else 1)
    if deepspeed.get("communication_data_type") == "fp32" and dtype != torch.float32:
        buckets += max(bucket_elements, largest) * (_FP32_BYTES + dtype.itemsize)
    if world_size > 1:
        buckets += max(0, num_elements - bucket_elements) * dtype.itemsize
    gradients = partition * _FP32_BYTES
    optimizer = 3 * partition * _FP32_BYTES  # masters and two moments
    return TrainableMemory(
        num_elements=num_elements,
        weights_bytes=num_elements * dtype.itemsize,
        masters_bytes=0 if on_host else partition * _FP32_BYTES,
        moments_bytes=0 if on_host else 2 * partition * _FP32_BYTES,
        # Offloaded: one parameter's gradient at a time on the device, all of the rank's fp32 ones on the host.
        gradients_bytes=largest * dtype.itemsize if on_host else gradients,
        buckets_bytes=buckets,
        host_bytes=optimizer + gradients + partition * dtype.itemsize if on_host else 0,
    )


def quantised_block_bytes(
    block_shapes: Mapping[str, tuple[int, ...]], quantisation: Literal["int8", "nf4"], dtype: torch.dtype
) -> int:
    """Device memory of a block whose matrices bitsandbytes holds; biases and LayerNorms are of `dtype`.

    int8: a byte an element and an fp32 scale a row. nf4 with double quantisation: half a byte an element, a byte
    for the scale of each 64, an fp32 scale for each 256 of those, and a layer's code tables.
    """
    total = 0
    for shape in block_shapes.values():
        numel = prod(shape)
        if len(shape) < 2:
            total += numel * dtype.itemsize
        elif quantisation == "int8":
            total += numel + shape[0] * _FP32_BYTES
        else:
            scales = -(-numel // 64)
            total += -(-numel // 2) + scales + -(-scales // 256) * _FP32_BYTES + _NF4_TABLES_BYTES
    return total
