"""How many frozen blocks stay on the device, and which; and the device memory of a stack."""

from typing import Literal

import torch

from artkv.errors import UserError
from artkv.frozen.block_layout import BlockLayout


def count_resident(
    resident_blocks: int | Literal["auto"],
    memory_budget_bytes: int | None,
    layout: BlockLayout,
    compute_dtype: torch.dtype,
    num_blocks: int,
    slots: int,
    is_staged: bool = True,
) -> int:
    """The number of blocks that stay on the device: as asked, or as many as the budget holds beside the slots.

    memory_budget_bytes: limit of `device_bytes` in both cases, or None for no limit.

    Raises:
        UserError: if a number is out of range, `auto` comes without a budget, or the budget is too small.
    """
    if slots < 1:
        raise UserError(f"frozen.slots = {slots}: must be at least 1")

    def bytes_with(resident: int) -> int:
        return device_bytes(layout, compute_dtype, num_blocks, slots, resident, is_staged)

    if resident_blocks == "auto":
        if memory_budget_bytes is None:
            raise UserError("frozen.resident_blocks = auto needs frozen.memory_budget; set it, or give a number")
        fitting = [n for n in range(num_blocks + 1) if bytes_with(n) <= memory_budget_bytes]
        resident = max(fitting, default=0)
    else:
        resident = resident_blocks
    check_resident_blocks(resident, num_blocks)
    if memory_budget_bytes is not None and bytes_with(resident) > memory_budget_bytes:
        raise UserError(
            f"frozen.memory_budget: {memory_budget_bytes / 1e6:.1f} MB do not hold {slots} slots and {resident} "
            f"resident blocks, which take {bytes_with(resident) / 1e6:.1f} MB; raise it or lower frozen.slots "
            "or frozen.resident_blocks"
        )
    return resident


def check_resident_blocks(resident: int, num_blocks: int) -> None:
    """Raises `UserError` for more blocks than the model has."""
    if not 0 <= resident <= num_blocks:
        raise UserError(f"frozen.resident_blocks = {resident}: must be auto or 0 to {num_blocks}")


def device_bytes(
    layout: BlockLayout,
    compute_dtype: torch.dtype,
    num_blocks: int,
    slots: int,
    resident_blocks: int,
    is_staged: bool = True,
) -> int:
    """Device memory that a stack of streamed blocks takes: resident blocks, slots and staging buffer.

    is_staged: False on the CPU, where slots are filled from host memory without a staging buffer.
    """
    held = resident_blocks + min(slots, num_blocks - resident_blocks)
    staging_bytes = layout.staging_bytes(compute_dtype) if is_staged else 0
    return held * layout.slot_bytes(compute_dtype) + staging_bytes


def spread_evenly(resident_blocks: int, num_blocks: int) -> list[int]:
    """Which blocks stay: evenly apart, so that each resident block gives the copies around it time."""
    return [(2 * n + 1) * num_blocks // (2 * resident_blocks) for n in range(resident_blocks)]
