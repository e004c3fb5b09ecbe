"""What streaming moves over PCIe, how long copies and products take, and from how many tokens on copies are hidden."""

from dataclasses import dataclass

from artkv.planning.gpus import Gpu


@dataclass(frozen=True)
class Stack:
    """A stack of equal frozen blocks.

    block_elements: parameters of one block. block_bytes: what one load of it moves.
    """

    num_blocks: int
    block_elements: int
    block_bytes: int


def loads_per_training_pass(num_streamed: int, slots: int) -> int:
    """Loads of a forward and backward pass once the slots are warm: 2S - 2B for S streamed blocks and B slots.

    Forward finds the first B blocks where the backward pass before it left them, and backward the last B. The
    very first pass loads B more.
    """
    return 2 * (num_streamed - min(slots, num_streamed))


def hidden_from_tokens(stack: Stack, gpu: Gpu) -> int:
    """Tokens that go through a block at a time from which its forward pass takes as long as the copy of the next.

    A block costs 2 FLOP a parameter and token. Backward, with 4 of them (recomputation and the gradient of
    the input), hides a copy from half as many tokens.
    """
    copy_seconds = stack.block_bytes / gpu.copy_bytes_per_second
    return round(copy_seconds * gpu.effective_flops / (2 * stack.block_elements))


def training_pass_seconds(
    stack: Stack,
    gpu: Gpu,
    tokens: int,
    recomputed_blocks: int,
    num_streamed: int = 0,
    slots: int = 1,
    slowdown: float = 1.0,
) -> float:
    """Estimated time of a forward and backward pass over the stack.

    Forward is 2 FLOP a parameter and token, backward 2 (weights are frozen: only the input has a gradient) and
    2 more in the blocks that are recomputed. With two slots or more a copy runs beside the products; with one, after
    them.

    slowdown: of the products against those of plain 16-bit weights.
    """
    product_seconds = 2 * stack.num_blocks * stack.block_elements * tokens / gpu.effective_flops * slowdown
    copy_seconds = loads_per_training_pass(num_streamed, slots) / 2 * stack.block_bytes / gpu.copy_bytes_per_second
    forward = _overlapped(product_seconds, copy_seconds, slots)
    return forward + _overlapped(product_seconds * (1 + recomputed_blocks / stack.num_blocks), copy_seconds, slots)


def forward_pass_seconds(stack: Stack, gpu: Gpu, tokens: int, num_streamed: int = 0, slots: int = 1) -> float:
    """Estimated time of a pass without gradients; every streamed block is loaded once."""
    product_seconds = 2 * stack.num_blocks * stack.block_elements * tokens / gpu.effective_flops
    return _overlapped(product_seconds, num_streamed * stack.block_bytes / gpu.copy_bytes_per_second, slots)


def _overlapped(product_seconds: float, copy_seconds: float, slots: int) -> float:
    return max(product_seconds, copy_seconds) if slots > 1 else product_seconds + copy_seconds
