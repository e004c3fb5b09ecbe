"""Which block is in which slot, and which one is fetched next.

Positions count the streamed blocks from 0 to S - 1, resident ones left out. With B slots the ring always works
towards a window of B positions: the current one and those that come after it in the present direction.
"""

from collections.abc import Sequence
from enum import Enum

from artkv.frozen.transport import Slot, Transport


class Direction(Enum):
    """The order in which blocks are needed.

    FORWARD: a forward pass with a backward pass to come, so the last blocks stay where they are.
    BACKWARD: its backward pass, from the last block to the first.
    CYCLE: a forward pass without gradients; the next thing to come is block 0 again.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    CYCLE = "cycle"


class BlockRing:
    """A ring of slots over the streamed blocks.

    A training step loads 2S - 2B blocks (2S - B the first time, when the slots are empty): a forward pass finds
    the first B where the backward pass before it left them, and a backward pass finds the last B.

    loads: how often each position was loaded.
    """

    def __init__(self, transport: Transport, blocks: Sequence[int], num_slots: int) -> None:
        self.transport = transport
        self.blocks = blocks
        self.slots = [transport.new_slot() for _ in range(min(num_slots, len(blocks)))]
        self.loads = [0] * len(blocks)
        self._slot_of: dict[int, Slot] = {}

    @property
    def live_slots(self) -> int:
        """Slots that hold a block or are being filled."""
        return len(self._slot_of)

    def acquire(self, position: int, direction: Direction) -> Slot:
        """The slot with the block of `position`, ready for what is enqueued next; fetches what is missing."""
        self._fetch(self._window(position, direction))
        slot = self._slot_of[position]
        self.transport.wait(slot)
        return slot

    def release(self, position: int) -> None:
        """Says that a use of the block is enqueued; its slot is refilled when a block that is not there is asked for.

        So several micro-batches in a row use a block that was fetched once.
        """
        slot = self._slot_of.get(position)
        if slot is not None:
            self.transport.release(slot)

    def _window(self, first: int, direction: Direction) -> list[int]:
        num_slots, num_blocks = len(self.slots), len(self.blocks)
        if direction is Direction.BACKWARD:
            return list(range(first, max(first - num_slots, -1), -1))
        if direction is Direction.FORWARD:
            return list(range(first, min(first + num_slots, num_blocks)))
        return [(first + ahead) % num_blocks for ahead in range(num_slots)]

    def _fetch(self, window: list[int]) -> None:
        for position in window:
            if position not in self._slot_of:
                slot = self._free_slot(window)
                self.transport.submit(slot, self.blocks[position])
                # Behind it: a slot whose copy could not be begun has no block.
                self._slot_of[position] = slot
                self.loads[position] += 1

    def _free_slot(self, window: list[int]) -> Slot:
        """An empty slot, or that of the block fetched longest ago among those outside the window."""
        held = {id(slot) for slot in self._slot_of.values()}
        for slot in self.slots:
            if id(slot) not in held:
                return slot
        evicted = next(position for position in self._slot_of if position not in window)
        return self._slot_of.pop(evicted)
