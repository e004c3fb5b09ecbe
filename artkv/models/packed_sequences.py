"""What OPT reads of packed questions. Letters in tensor names are those of `artkv.batch`, K visual tokens."""

import torch
from torch import Tensor

from artkv.batch import PackedQuestions


def tree_attention_mask(subtree_end_RL: Tensor) -> Tensor:
    """(R, 1, L, L) bool, true where column i attends to column j: `j <= i < subtree_end[j]`."""
    columns_L = torch.arange(subtree_end_RL.shape[1], device=subtree_end_RL.device)
    is_before_LL = columns_L[None, :] <= columns_L[:, None]
    return (is_before_LL & (columns_L[:, None] < subtree_end_RL[:, None, :]))[:, None]


def packed_embeddings(text_RLD: Tensor, visual_IKD: Tensor, questions: PackedQuestions) -> Tensor:
    """The text's embeddings with each piece's visual tokens put in their places, (R, L, D)."""
    visual_PKD = visual_IKD.to(text_RLD.dtype).index_select(0, questions.piece_painting)
    places_PK = questions.piece_places[:, None] + torch.arange(visual_IKD.shape[1], device=visual_IKD.device)
    packed = text_RLD.flatten(0, 1).index_copy(0, places_PK.flatten(), visual_PKD.flatten(0, 1))
    return packed.view_as(text_RLD)
