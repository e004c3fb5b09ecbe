"""OPT's attention on CPUs.

Letters in tensor names are explained in `artkv.batch`: C columns ask, L are asked.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

CPU_ATTENTION = "artkv_cpu"
"""What to give to a transformers model's `set_attn_implementation`.

PyTorch's fused attention is slow on CPUs where gradients are needed: its backward takes up to six times as long as the
products that it is made of (docs/throughput.md).
"""


def attention_in_products(
    module: Any,
    query_RHCX: Tensor,
    key_RHLX: Tensor,
    value_RHLX: Tensor,
    mask_R1CL: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' `eager` attention for models that do not train, (R, C, H, X), and no weights.

    In two thirds of its time: `torch.softmax` computes in fp32 inside, so bfloat16 scores need no copy in fp32, and the
    mask is added in place.

    mask: additive.
    """
    if dropout:
        raise ValueError(f"attention with a dropout of {dropout}; frozen models have none")
    weights_RHCL = torch.matmul(query_RHCX, key_RHLX.transpose(2, 3))
    if scaling != 1.0:
        weights_RHCL = weights_RHCL * scaling
    if mask_R1CL is not None:
        weights_RHCL += mask_R1CL
    out_RHCX = torch.matmul(torch.softmax(weights_RHCL, dim=-1), value_RHLX)
    return out_RHCX.transpose(1, 2).contiguous(), None


AttentionInterface.register(CPU_ATTENTION, attention_in_products)
AttentionMaskInterface.register(CPU_ATTENTION, eager_mask)
