"""What OPT reads of packed questions. Letters in tensor names are explained in `artkv.batch`."""

import torch
from torch import Tensor

from artkv.batch import PackedRows

# CUDA's kernel for masked attention copies a mask whose rows are not aligned to so many elements.
_MASK_ALIGNMENT = 8


def tree_attention_mask(subtree_end_RL: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, 1, L, L), 0 where column i attends to column j, `j <= i < subtree_end[j]`, and -inf elsewhere.

    dtype: the queries'. SDPA makes such a mask of a boolean one in each block anew and keeps it for backward; this
    one is there once for all of them.
    """
    num_rows, num_columns = subtree_end_RL.shape
    columns_L = torch.arange(num_columns, device=subtree_end_RL.device)
    is_seen_RLL = (columns_L[None, :] <= columns_L[:, None]) & (columns_L[:, None] < subtree_end_RL[:, None, :])
    mask_R1LL = closed_mask((num_rows, num_columns, num_columns), dtype, columns_L.device)
    return mask_R1LL.masked_fill_(is_seen_RLL[:, None], 0.0)


def closed_mask(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(R, 1, C, L) of -inf: R rows in which C columns attend to none of L."""
    num_rows, num_queries, num_columns = shape
    aligned = -(-num_columns // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    mask = torch.full((num_rows, 1, num_queries, aligned), float("-inf"), dtype=dtype, device=device)
    return mask[..., :num_columns]


def packed_embeddings(text_RLD: Tensor, visual_IKD: Tensor, rows: PackedRows) -> Tensor:
    """The text's embeddings with each piece's visual tokens put in their places, (R, L, D)."""
    visual_GKD = visual_IKD.to(text_RLD.dtype).index_select(0, rows.piece_painting)
    places_GK = rows.piece_places[:, None] + torch.arange(visual_IKD.shape[1], device=visual_IKD.device)
    packed = text_RLD.flatten(0, 1).index_copy(0, places_GK.flatten(), visual_GKD.flatten(0, 1))
    return packed.view_as(text_RLD)
