"""OPT's last block, computed only where its output is read.

Letters in tensor names are explained in `artkv.batch`.
"""

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.opt.modeling_opt import eager_attention_forward

from artkv.models.opt.packed_sequences import tree_attention_mask
from artkv.models.opt.tree_attention import is_subtree_end


def read_answer_columns(block: nn.Module) -> None:
    """Gives a decoder block the option `answer_columns`, (R, C) int64: its output is then (R, C, D), of these columns.

    For the last block: after it no column reads another, so queries, output projection and feed-forward of all
    others are work for nothing; keys and values are needed everywhere. Without the option the block stays as it is.
    transformers' OPT hands unknown keyword arguments down to each block, and the other blocks ignore this one.

    block: transformers' `OPTDecoderLayer`. To be called before its weights are streamed or its forward wrapped.
    """
    forward = block.forward

    @wraps(forward)
    def at_answers(hidden_states: Tensor, *inputs: Any, answer_columns: Tensor | None = None, **options: Any) -> Any:
        if answer_columns is None:
            return forward(hidden_states, *inputs, **options)
        cache = options.get("past_key_values")
        return _at_columns(block, hidden_states, options["attention_mask"], answer_columns, cache)

    block.forward = at_answers  # type: ignore[method-assign]


def _at_columns(block: Any, hidden_RLD: Tensor, mask: Tensor, columns_RC: Tensor, cache: Cache | None) -> Tensor:
    """`OPTDecoderLayer.forward` in eval mode, with queries at `columns_RC` only.

    mask: (R, 1, L, L), or what `TREE_ATTENTION` takes in place of it.
    """
    attention = block.self_attn
    num_rows, num_columns, _ = hidden_RLD.shape
    places_RC = columns_RC + num_columns * torch.arange(num_rows, device=columns_RC.device)[:, None]

    def at_places(values_RL: Tensor) -> Tensor:
        picked = values_RL.flatten(0, 1).index_select(0, places_RC.flatten())
        return picked.view(*places_RC.shape, -1)

    def heads(projected: Tensor) -> Tensor:
        return projected.view(num_rows, -1, attention.num_heads, attention.head_dim).transpose(1, 2)

    is_pre_norm = block.do_layer_norm_before
    normed_RLD = block.self_attn_layer_norm(hidden_RLD) if is_pre_norm else hidden_RLD
    keys_RHLX, values_RHLX = heads(attention.k_proj(normed_RLD)), heads(attention.v_proj(normed_RLD))
    if cache is not None:
        keys_RHLX, values_RHLX = cache.update(keys_RHLX, values_RHLX, attention.layer_idx)
    if is_subtree_end(mask):
        mask_R1CL = tree_attention_mask(mask, hidden_RLD.dtype, columns_RC)
    else:
        mask_R1CL = at_places(mask.squeeze(1))[:, None]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    out_RCHX, _ = attend(
        attention,
        heads(attention.q_proj(at_places(normed_RLD)) * attention.scaling),
        keys_RHLX,
        values_RHLX,
        mask_R1CL,
        scaling=1.0,  # the query is scaled, as in OPT
    )
    hidden_RCD = at_places(hidden_RLD) + attention.out_proj(out_RCHX.flatten(2))
    if not is_pre_norm:
        hidden_RCD = block.self_attn_layer_norm(hidden_RCD)
    normed_RCD = block.final_layer_norm(hidden_RCD) if is_pre_norm else hidden_RCD
    hidden_RCD = hidden_RCD + block.fc2(block.activation_fn(block.fc1(normed_RCD)))
    return hidden_RCD if is_pre_norm else block.final_layer_norm(hidden_RCD)
