"""Greedy decoding of answers from embeddings, padded on the left.

Letters in tensor names: Q questions, S positions, D OPT's width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from artkv.datasets.tokenization import newline_token_id


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
