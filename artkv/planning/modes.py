"""The ways to hold the frozen weights, and where features come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

OptMode = Literal["resident", "stream", "int8", "nf4"]
Storage = Literal["bf16", "int8"]
# computed: ViT and art encoders run in each step. ViT streamed: the ViT's blocks come from host memory.
# cached: both ran before training.
Features = Literal["computed", "ViT streamed", "cached"]

FEATURES: tuple[Features, ...] = ("computed", "ViT streamed", "cached")
SLOTS = (1, 2, 3, 4)
_VIT_SLOTS = 2


@dataclass(frozen=True)
class Mode:
    """A way to hold OPT's blocks.

    storage, slots, resident_blocks: of streamed blocks; the storage is a streamed ViT's too. kept_blocks: how many keep
    their activations for backward, which recomputes the inside of the others; None: all.
    """

    opt: OptMode
    kept_blocks: int | None = None
    storage: Storage = "bf16"
    slots: int = 1
    resident_blocks: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether it computes with the very weights, and not with quantised ones."""
        return self.opt in ("resident", "stream") and self.storage == "bf16"

    @property
    def vit_slots(self) -> int:
        """Slots of a streamed ViT: the same setting, free to choose where OPT is not streamed."""
        return self.slots if self.opt == "stream" else _VIT_SLOTS

    @property
    def name(self) -> str:
        """As printed."""
        name: str = self.opt
        if self.opt == "stream":
            name = f"stream {self.storage}, {self.slots} slot{'s' if self.slots > 1 else ''}"
            if self.resident_blocks:
                name += f", {self.resident_blocks} resident"
        if self.kept_blocks == 0:
            # Streamed blocks are fetched for backward anyway: that they are recomputed too goes without saying.
            return name if self.opt == "stream" else f"{name}, recomputed"
        if self.kept_blocks is not None:
            return f"{name}, {self.kept_blocks} kept"
        return f"{name}, all kept" if self.opt == "stream" else name


def all_modes(num_blocks: int) -> Iterator[Mode]:
    """Every mode of the table."""
    yield from (Mode("resident", kept) for kept in (None, 0))
    for storage in ("bf16", "int8"):
        yield from (Mode("stream", 0, storage, slots) for slots in SLOTS if slots <= num_blocks)  # type: ignore[arg-type]
    yield from (Mode(opt, kept) for opt in ("int8", "nf4") for kept in (None, 0))  # type: ignore[arg-type]
