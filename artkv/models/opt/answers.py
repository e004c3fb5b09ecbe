"""Answers: their loss, without a logit anywhere else and without all logits at once, and their greedy decoding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers import GenerationConfig

from artkv.datasets.tokenization import newline_token_id

# Answer tokens whose logits are there at a time: 26 MB of fp32 for OPT's vocabulary of 50304, while the head's
# products still are large ones.
CHUNK_TOKENS = 128


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


class _AnswerCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_AD: Tensor, head_VD: Tensor, ids_A: Tensor, weight_A: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden_AD.dtype, torch.float32)
        loss = torch.zeros((), dtype=dtype, device=hidden_AD.device)
        has_gradient = ctx.needs_input_grad[0]
        gradient_AD = torch.empty_like(hidden_AD) if has_gradient else None
        for start in range(0, hidden_AD.shape[0], CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            ids_C1, weight_C1 = ids_A[chunk, None], weight_A[chunk, None].to(dtype)
            log_p_CV = torch.log_softmax(linear(hidden_AD[chunk], head_VD), dim=-1, dtype=dtype)
            loss -= (weight_C1 * log_p_CV.gather(1, ids_C1)).sum()
            if gradient_AD is not None:
                # Softmax less the one-hot answer.
                gradient_CV = log_p_CV.exp_()
                gradient_CV.scatter_(1, ids_C1, gradient_CV.gather(1, ids_C1) - 1).mul_(weight_C1)
                torch.mm(gradient_CV.to(hidden_AD.dtype), head_VD, out=gradient_AD[chunk])
        if gradient_AD is not None:
            ctx.save_for_backward(gradient_AD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_AD,) = ctx.saved_tensors
        return gradient_AD * gradient, None, None, None


def generate_token_ids(
    language_model: nn.Module, tokenizer: Any, embeds_QSD: Tensor, mask_QS: Tensor, max_new_tokens: int
) -> Tensor:
    """The new tokens of each question, (Q, at most max_new_tokens), ended by a newline or `</s>`.

    Args:
        embeds_QSD: prompts padded on the right.
        mask_QS: int64, 1 on real positions.
    """
    embeds_QSD, mask_QS = left_padded(embeds_QSD, mask_QS)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=[newline_token_id(tokenizer), tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    # Given embeddings only, generate returns the new tokens alone: the question is never echoed.
    return language_model.generate(  # type: ignore[operator]
        inputs_embeds=embeds_QSD, attention_mask=mask_QS, generation_config=config
    )


def left_padded(embeds_QSD: Tensor, mask_QS: Tensor) -> tuple[Tensor, Tensor]:
    """Moves each row's padding from its right end to its left.

    Decoding appends at the right end, and OPT counts positions by the mask: only with padding on the
    left does the first new token directly follow the prompt, as it does without a batch.
    """
    num_positions = mask_QS.shape[1]
    padding_Q1 = num_positions - mask_QS.sum(dim=1, keepdim=True)
    source_QS = (torch.arange(num_positions, device=mask_QS.device) - padding_Q1) % num_positions
    rows_Q1 = torch.arange(mask_QS.shape[0], device=mask_QS.device)[:, None]
    return embeds_QSD[rows_Q1, source_QS], mask_QS[rows_Q1, source_QS]
