"""The loss of frozen OPT's answers and its gradient at OPT's input, made together.

Nothing in OPT trains, so the gradient at its input is all that backward needs of it. Making it beside the loss frees
OPT's activations before the Q-Former's backward begins, lets micro-batches go through OPT block by block, and leaves a
pure function of tensors, which CUDA can replay as one graph.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from artkv.batch import PackedAnswers, PackedQuestions
from artkv.models.cuda_graphs import GraphedFunction, GraphGroup
from artkv.models.cuda_recorder import Recorder
from artkv.models.opt.answers import answer_cross_entropy, hidden_at_answers
from artkv.models.opt.tree_attention import seen_in_packed_rows


def decode_packed(language_model: Any, embeds: Sequence[Tensor], questions: Sequence[PackedAnswers]) -> list[Tensor]:
    """What OPT's decoder makes of each batch, (R, C, D) at its answer columns: block by block over all batches.

    transformers' `OPTDecoder.forward` for several batches, with masks and positions that are given. A streamed block is
    fetched once for all of them, in backward too: autograd goes through what was computed last first.

    embeds: (R, L, D) of each batch, visual tokens included.
    """
    decoder = language_model.model.decoder
    pairs = list(zip(embeds, questions, strict=True))
    masks = [seen_in_packed_rows(language_model, one.subtree_end, embeds_RLD.dtype) for embeds_RLD, one in pairs]
    hidden = [_with_positions(decoder, embeds_RLD, one) for embeds_RLD, one in pairs]
    *blocks, last = decoder.layers
    for block in blocks:
        hidden = [
            block(states, attention_mask=mask, use_cache=False) for states, mask in zip(hidden, masks, strict=True)
        ]
    hidden = [
        last(states, attention_mask=mask, answer_columns=one.answer_columns, use_cache=False)
        for states, mask, one in zip(hidden, masks, questions, strict=True)
    ]
    for one, hidden_RCD in zip(questions, hidden, strict=True):
        if hidden_RCD.shape[:2] != one.answer_columns.shape:
            raise RuntimeError(
                "OPT's last block ignores answer_columns; the backend has not called read_answer_columns"
            )
    return [_after_the_blocks(decoder, hidden_RCD) for hidden_RCD in hidden]


def packed_answer_losses(
    language_model: Any, embeds: Sequence[Tensor], questions: Sequence[PackedQuestions]
) -> list[Tensor]:
    """The summed cross-entropy of each batch's answers, each of shape (), with a graph down to `embeds`."""
    hidden = decode_packed(language_model, embeds, questions)
    return [
        answer_cross_entropy(
            hidden_at_answers(hidden_RCD, one.answer_places), language_model.lm_head, one.answer_ids, one.answer_weight
        )
        for hidden_RCD, one in zip(hidden, questions, strict=True)
    ]


class AnswerGradients:
    """Makes the losses of frozen OPT together with their gradients.

    language_model: transformers' OPTForCausalLM of which nothing trains. recorder: of CUDA graphs, one for each shape;
    batches then go one by one. None: no graphs, as where the blocks' weights change their places. group: of the graphs.
    """

    def __init__(self, language_model: Any, recorder: Recorder | None = None, group: GraphGroup | None = None) -> None:
        self._language_model = language_model
        self._graphed = None if recorder is None else GraphedFunction("OPT", self._of_tensors, recorder, group)

    def losses(self, embeds: Sequence[Tensor], questions: Sequence[PackedQuestions]) -> list[Tensor]:
        """As `packed_answer_losses`; backward of each only scales a gradient that is there already."""
        if self._graphed is None:
            made = self._losses_and_gradients(embeds, questions)
        else:
            made = [self._graphed(*read) for read in map(_read_by_opt, embeds, questions)]
        return [
            _KnownGradient.apply(embeds_RLD, loss, gradient_RLD)
            for embeds_RLD, (loss, gradient_RLD) in zip(embeds, made, strict=True)
        ]

    def _losses_and_gradients(
        self, embeds: Sequence[Tensor], questions: Sequence[PackedQuestions]
    ) -> list[tuple[Tensor, ...]]:
        """Of each batch: shapes () and (R, L, D)."""
        with torch.enable_grad():
            leaves = [embeds_RLD.detach().requires_grad_() for embeds_RLD in embeds]
            losses = packed_answer_losses(self._language_model, leaves, questions)
            gradients = torch.autograd.grad(losses, leaves)
        return [(loss.detach(), gradient) for loss, gradient in zip(losses, gradients, strict=True)]

    def _of_tensors(self, embeds_RLD: Tensor, *read: Tensor) -> tuple[Tensor, ...]:
        """Loss and gradient of one batch, as a function of tensors alone."""
        return self._losses_and_gradients([embeds_RLD], [_questions_of(read)])[0]


# What OPT reads of packed questions, once their embeddings are there.
_READ = ("position_ids", "subtree_end", "answer_columns", "answer_places", "answer_ids", "answer_weight")


def _read_by_opt(embeds_RLD: Tensor, questions: PackedQuestions) -> list[Tensor]:
    return [embeds_RLD, *(getattr(questions, name) for name in _READ)]


def _questions_of(read: Sequence[Tensor]) -> PackedQuestions:
    unread = read[0].new_empty(0)
    rest = dict.fromkeys(("token_ids", "piece_places", "piece_painting"), unread)
    return PackedQuestions(**dict(zip(_READ, read, strict=True)), **rest)


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradient at `embeds` is known."""

    @staticmethod
    def forward(ctx: Any, embeds_RLD: Tensor, loss: Tensor, gradient_RLD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_RLD)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient_RLD,) = ctx.saved_tensors
        return gradient_RLD * gradient, None, None


def _with_positions(decoder: Any, embeds_RLD: Tensor, questions: PackedAnswers) -> Tensor:
    # With positions given the embedding reads no mask.
    positions_RLD = decoder.embed_positions(None, position_ids=questions.position_ids)
    if decoder.project_in is not None:
        embeds_RLD = decoder.project_in(embeds_RLD)
    return embeds_RLD + positions_RLD


def _after_the_blocks(decoder: Any, hidden_RCD: Tensor) -> Tensor:
    if decoder.final_layer_norm is not None:
        hidden_RCD = decoder.final_layer_norm(hidden_RCD)
    if decoder.project_out is not None:
        hidden_RCD = decoder.project_out(hidden_RCD)
    return hidden_RCD
