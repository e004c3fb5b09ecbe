"""Answers' loss, without a logit anywhere else and without all logits at once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

# Answer tokens whose logits are there at a time: 26 MB of fp32 for OPT's vocabulary of 50304, while the head's
# products still are large ones.
CHUNK_TOKENS = 128
# Rows of the head that are there in fp32 at a time: 42 MB of OPT-2.7b's width.
_HEAD_ROWS = 4096


def hidden_at_answers(hidden_RCD: Tensor, places_A: Tensor, num_visual: int = 0) -> Tensor:
    """What predicts each answer token, (A, D).

    hidden_RCD: OPT's output, R rows of C columns. places_A: int64, of the answer tokens among all text tokens.
    num_visual: columns in front of the text's; 0 where the columns are those that predict.
    """
    if num_visual:
        # The last visual token predicts text token 0, text token t predicts t + 1.
        hidden_RCD = hidden_RCD[:, num_visual - 1 : -1]
    return hidden_RCD.flatten(0, 1).index_select(0, places_A)


def answer_cross_entropy(hidden_AD: Tensor, lm_head: nn.Linear, ids_A: Tensor, weight_A: Tensor) -> Tensor:
    """The sum of weight * cross-entropy over answer tokens, shape (), fp32 (fp64 for fp64 hidden states).

    Logits have the hidden states' dtype, as stock BLIP-2's, and the loss is computed from them in fp32. The
    gradient is computed beside it in the forward pass, while a chunk's logits are there: two products with the head's
    matrix, where recomputing them in backward would take three.

    hidden_AD: what predicts each token. lm_head: frozen and without bias. ids_A: int64. weight_A: float.
    """
    if lm_head.bias is not None or lm_head.weight.requires_grad:
        raise ValueError("the language model's head must be frozen and without bias")
    loss: Tensor = _AnswerCrossEntropy.apply(hidden_AD, lm_head.weight, ids_A, weight_A)
    return loss


def answer_log_probabilities(hidden_CD: Tensor, lm_head: nn.Linear, places_A: Tensor, ids_A: Tensor) -> Tensor:
    """log p of each answer token given all before it, (A,), fp32 (fp64 for fp64 hidden states); without a gradient.

    The logits of a column are computed once, however many answers go on from there, and in fp32: bfloat16 would round
    one of 20 to an eighth, and of answers that are compared by their likelihood one in a hundred would be as likely as
    the best one.

    hidden_CD: of all columns that predict one. places_A: int64, the column of each token. ids_A: int64.
    """
    dtype = torch.promote_types(hidden_CD.dtype, torch.float32)
    log_p_A = torch.zeros(len(ids_A), dtype=dtype, device=hidden_CD.device)
    for start in range(0, hidden_CD.shape[0], CHUNK_TOKENS):
        chunk_CD = hidden_CD[start : start + CHUNK_TOKENS].to(dtype)
        slices = lm_head.weight.split(_HEAD_ROWS)
        log_p_CO = torch.log_softmax(torch.cat([linear(chunk_CD, rows.to(dtype)) for rows in slices], dim=1), dim=1)
        is_here_A = (places_A >= start) & (places_A < start + CHUNK_TOKENS)
        here_A = log_p_CO[(places_A - start).clamp(0, len(log_p_CO) - 1), ids_A]
        log_p_A = torch.where(is_here_A, here_A, log_p_A)
    return log_p_A


class _AnswerCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_AD: Tensor, head_OD: Tensor, ids_A: Tensor, weight_A: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden_AD.dtype, torch.float32)
        loss = torch.zeros((), dtype=dtype, device=hidden_AD.device)
        has_gradient = ctx.needs_input_grad[0]
        gradient_AD = torch.empty_like(hidden_AD) if has_gradient else None
        for start in range(0, hidden_AD.shape[0], CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            ids_A1, weight_A1 = ids_A[chunk, None], weight_A[chunk, None].to(dtype)
            log_p_AO = torch.log_softmax(linear(hidden_AD[chunk], head_OD), dim=-1, dtype=dtype)
            loss -= (weight_A1 * log_p_AO.gather(1, ids_A1)).sum()
            if gradient_AD is not None:
                # Softmax less the one-hot answer.
                gradient_AO = log_p_AO.exp_()
                gradient_AO.scatter_(1, ids_A1, gradient_AO.gather(1, ids_A1) - 1).mul_(weight_A1)
                torch.mm(gradient_AO.to(hidden_AD.dtype), head_OD, out=gradient_AD[chunk])
        if gradient_AD is not None:
            ctx.save_for_backward(gradient_AD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_AD,) = ctx.saved_tensors
        return gradient_AD * gradient, None, None, None
