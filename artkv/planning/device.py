"""What the device says of its memory, and whether it has bfloat16."""

from dataclasses import dataclass, replace

import torch

from artkv.distributed import World
from artkv.frozen.host_memory import free_host_bytes
from artkv.models.backbone.backends import resolve_dtype


@dataclass(frozen=True)
class Device:
    """A GPU, its memory, and how much of it is free; this process's own context counts as taken.

    has_bf16: whether `model.dtype: auto` is bfloat16 on it. host_bytes: what is free of the host's memory, or None.
    """

    name: str
    memory_bytes: int
    free_bytes: int
    has_bf16: bool = True
    host_bytes: int | None = None


def ask_device(device: torch.device) -> Device | None:
    """What CUDA says; None for a CPU, whose memory is not asked for."""
    if device.type != "cuda":
        return None
    free_bytes, memory_bytes = torch.cuda.mem_get_info(device)
    has_bf16 = resolve_dtype("auto", device) == torch.bfloat16
    return Device(torch.cuda.get_device_name(device), memory_bytes, free_bytes, has_bf16, free_host_bytes())


def shared_device(world: World) -> Device | None:
    """Rank 0's, with the least memory that is free on any rank and host, so that all choose alike; called on all ranks.

    None if any computes on a CPU.
    """
    devices = world.gather(ask_device(world.device))
    known = [device for device in devices if device is not None]
    if len(known) < len(devices):
        return None
    of_hosts = [device.host_bytes for device in known if device.host_bytes is not None]
    return replace(
        known[0], free_bytes=min(device.free_bytes for device in known), host_bytes=min(of_hosts, default=None)
    )
