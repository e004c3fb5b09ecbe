"""How one block's tensors lie in a device slot, and how they are packed in host memory.

All streamed blocks have one layout. A slot is a flat buffer of the compute dtype; a packed block is a flat
buffer of bytes. `pack` fills the second from tensors, `decode` fills the first from the second.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Storage = Literal["fp32", "bf16", "int8"]
TensorReader = Callable[[], Tensor]

_PLAIN_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_INT8_MAX = 127
_ROWS_AT_ONCE = 256  # fp32 copies of a whole matrix of OPT-2.7b would take more than its block
# Tensors start at multiples of 256 bytes even in 2-byte slots, as in PyTorch's own CUDA allocations: kernels pick
# their variant by alignment.
_ALIGNMENT_ELEMENTS = 128
_ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies.

    name: its parameter name inside the block, without LoRA's `.base_layer`.
    slot_offset: first element in the slot.
    packed_offset: first byte in the packed block.
    scales_offset: first byte of its fp32 scales in the packed block, one per output channel (row); None where
        the tensor is not quantised.
    """

    name: str
    shape: tuple[int, ...]
    slot_offset: int
    packed_offset: int
    scales_offset: int | None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class BlockLayout:
    """The places of a block's tensors; see `block_layout`.

    slot_elements: length of a slot's flat buffer.
    packed_bytes: length of a packed block; so much crosses PCIe at each load.
    """

    storage: Storage
    places: tuple[TensorPlace, ...]
    slot_elements: int
    packed_bytes: int

    @property
    def plain_dtype(self) -> torch.dtype | None:
        """The dtype of the whole packed block, or None where it is quantised."""
        return _PLAIN_DTYPES.get(self.storage)

    def slot_bytes(self, compute_dtype: torch.dtype) -> int:
        """Device memory of one slot."""
        return self.slot_elements * compute_dtype.itemsize

    def staging_bytes(self, compute_dtype: torch.dtype) -> int:
        """Device memory for one packed block on its way into a slot; 0 where it can be copied straight there."""
        return 0 if self.plain_dtype == compute_dtype else self.packed_bytes

    def slot_parameters(self, flat: Tensor) -> list[nn.Parameter]:
        """Frozen parameters over a slot's buffer, in the order of `places`.

        They share the buffer's version counter, so autograd refuses a backward that saved one of them before
        the slot was refilled. Assigning to `.data` would leave that counter alone and give wrong gradients.
        """
        return [nn.Parameter(self._in_slot(place, flat), requires_grad=False) for place in self.places]

    @torch.no_grad()
    def pack(self, tensor_of: Mapping[str, TensorReader], packed: Tensor) -> None:
        """Reads a block's tensors, one at a time and each once, and packs them into the bytes of `packed`.

        Raises:
            ValueError: if names or shapes are not the layout's, or a matrix to be quantised is not finite.
        """
        if tensor_of.keys() != {place.name for place in self.places}:
            different = sorted(tensor_of.keys() ^ {place.name for place in self.places})
            raise ValueError(f"blocks differ in their tensors: {different[:8]}; all streamed blocks must be alike")
        for place in self.places:
            self._pack_tensor(place, tensor_of[place.name](), packed)

    @torch.no_grad()
    def decode(self, packed: Tensor, flat: Tensor) -> None:
        """Fills a slot's buffer from a packed block on the same device: copies, casts or dequantises."""
        if self.plain_dtype is not None:
            flat.copy_(self.as_slot(packed))
            return
        for place in self.places:
            target = self._in_slot(place, flat)
            if place.scales_offset is None:
                target.copy_(_typed(packed, place.packed_offset, torch.bfloat16, place.shape))
            else:
                codes = _typed(packed, place.packed_offset, torch.int8, place.shape)
                scales = _typed(packed, place.scales_offset, torch.float32, place.shape[:1])
                # The product is formed in fp32 and rounded once, when it is written.
                torch.mul(codes, scales.view(-1, *[1] * (len(place.shape) - 1)), out=target)

    def as_slot(self, packed: Tensor) -> Tensor:
        """A plain packed block as one flat tensor of the stored dtype, element for element a slot's."""
        assert self.plain_dtype is not None, "a quantised block has no such view"
        return packed.view(self.plain_dtype)

    def _pack_tensor(self, place: TensorPlace, tensor: Tensor, packed: Tensor) -> None:
        if tuple(tensor.shape) != place.shape:
            raise ValueError(
                f"{place.name} has shape {tuple(tensor.shape)}, in the first block {place.shape}; "
                "all streamed blocks must be alike"
            )
        if place.scales_offset is None:
            dtype = self.plain_dtype or torch.bfloat16
            _typed(packed, place.packed_offset, dtype, place.shape).copy_(tensor)
            return
        codes = _typed(packed, place.packed_offset, torch.int8, place.shape)
        scales = _typed(packed, place.scales_offset, torch.float32, place.shape[:1])
        _quantise(tensor, codes, scales, place.name)

    def _in_slot(self, place: TensorPlace, flat: Tensor) -> Tensor:
        return flat[place.slot_offset : place.slot_offset + place.numel].view(place.shape)


def block_layout(shapes: Mapping[str, Sequence[int]], storage: Storage) -> BlockLayout:
    """The layout of blocks whose tensors have these names and shapes.

    storage: `fp32` and `bf16` hold all tensors in that dtype. `int8` holds tensors of two or more dimensions in
        one byte an element with one fp32 scale per output channel (symmetric: row maximum / 127), and biases
        and LayerNorms in bf16.
    """
    if storage not in ("fp32", "bf16", "int8"):
        raise ValueError(f"storage = {storage!r}; expected fp32, bf16 or int8")
    places = []
    slot_offset = packed_offset = 0
    plain_dtype = _PLAIN_DTYPES.get(storage)
    for name, shape in sorted(shapes.items()):
        numel = math.prod(shape)
        scales_offset = None
        place_offset = packed_offset
        if plain_dtype is not None:
            place_offset = slot_offset * plain_dtype.itemsize
        elif len(shape) >= 2:
            scales_offset = _aligned(place_offset + numel, _ALIGNMENT_BYTES)
            packed_offset = _aligned(scales_offset + shape[0] * torch.float32.itemsize, _ALIGNMENT_BYTES)
        else:
            packed_offset = _aligned(place_offset + numel * torch.bfloat16.itemsize, _ALIGNMENT_BYTES)
        places.append(TensorPlace(name, tuple(shape), slot_offset, place_offset, scales_offset))
        slot_offset = _aligned(slot_offset + numel, _ALIGNMENT_ELEMENTS)
    packed_bytes = packed_offset if plain_dtype is None else slot_offset * plain_dtype.itemsize
    return BlockLayout(storage, tuple(places), slot_offset, packed_bytes)


def _quantise(tensor: Tensor, codes: Tensor, scales: Tensor, name: str) -> None:
    """Writes `tensor` as int8 codes of the same shape and fp32 scales of shape (rows,)."""
    parts = (all_rows.split(_ROWS_AT_ONCE) for all_rows in (tensor.flatten(1), codes.flatten(1), scales))
    for rows, row_codes, row_scales in zip(*parts, strict=True):
        rows = rows.float()
        row_scales.copy_(torch.linalg.vector_norm(rows, torch.inf, dim=1) / _INT8_MAX)
        # A row of zeros has scale 0; any divisor leaves it zero.
        divisors = torch.where(row_scales > 0, row_scales, 1.0)
        row_codes.copy_((rows / divisors[:, None]).round_())
    if not torch.isfinite(scales).all():
        raise ValueError(f"{name} holds a value that is not finite; it cannot be stored as int8")


def _typed(packed: Tensor, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    return packed[offset : offset + num_bytes].view(dtype).view(*shape)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
