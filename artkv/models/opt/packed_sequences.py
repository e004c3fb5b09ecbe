"""What OPT reads of packed questions. Letters in tensor names are explained in `artkv.batch`."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from artkv.batch import PackedRows

# CUDA's kernel for masked attention copies a mask whose rows are not aligned to so many elements.
_MASK_ALIGNMENT = 8


def tree_attention_mask(subtree_end_RL: Tensor, dtype: torch.dtype, columns_RC: Tensor | None = None) -> Tensor:
    """(R, 1, C, L), 0 where column i attends to column j, `j <= i < subtree_end[j]`, and -inf elsewhere.

    dtype: the queries'. columns_RC: int64, the columns that attend; None: all, in their order. SDPA makes such a mask
    of a boolean one in each block anew and keeps it for backward; this one is there once for all of them.
    """
    num_rows, num_columns = subtree_end_RL.shape
    seen_L = torch.arange(num_columns, device=subtree_end_RL.device)
    asking_RC = seen_L.expand(num_rows, -1) if columns_RC is None else columns_RC
    is_seen_RCL = (seen_L <= asking_RC[:, :, None]) & (asking_RC[:, :, None] < subtree_end_RL[:, None, :])
    mask_R1CL = closed_mask((num_rows, asking_RC.shape[1], num_columns), dtype, seen_L.device)
    return mask_R1CL.masked_fill_(is_seen_RCL[:, None], 0.0)


def closed_mask(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(R, 1, C, L) of -inf: R rows in which C columns attend to none of L."""
    num_rows, num_queries, num_columns = shape
    aligned = -(-num_columns // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    mask = torch.full((num_rows, 1, num_queries, aligned), float("-inf"), dtype=dtype, device=device)
    return mask[..., :num_columns]


def paintings_together(parts: Iterable[Tensor], num_visual: int) -> Tensor:
    """All parts' visual tokens as of one batch, (I, num_visual, D); where a part has fewer, zeros that nothing sees."""
    return torch.cat([pad(part, (0, 0, 0, num_visual - part.shape[1])) for part in parts])


def packed_embeddings(text_RLD: Tensor, visual_IKD: Tensor, rows: PackedRows) -> Tensor:
    """The text's embeddings with each piece's visual tokens put in their places, (R, L, D)."""
    visual_GKD = visual_IKD.to(text_RLD.dtype).index_select(0, rows.piece_painting)
    places_GK = rows.piece_places[:, None] + torch.arange(visual_IKD.shape[1], device=visual_IKD.device)
    packed = text_RLD.flatten(0, 1).index_copy(0, places_GK.flatten(), visual_GKD.flatten(0, 1))
    return packed.view_as(text_RLD)
