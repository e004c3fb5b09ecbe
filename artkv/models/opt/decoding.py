"""Greedy decoding of packed prompts.

One forward pass computes all prompts' columns and keeps their keys and values. After it each step computes one new
token of each question, as new columns of the row that holds its prompt. A row has C slots, one a question:

    [ prompts, as packed | C first tokens | C second tokens | ... ]

and a slot's query sees its prompt and its own new tokens. Cache and mask are laid out anew now and then: larger, and
without the questions that have ended. In between every tensor of a step keeps its shape and its place.

Letters in tensor names are explained in `artkv.batch`: C columns ask, L are asked.
"""

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from artkv.batch import PackedPrompts
from artkv.datasets.tokenization import newline_token_id
from artkv.distributed import ToHost
from artkv.models.opt.packed_sequences import closed_mask, tree_attention_mask

# Steps until the second layout, in which most answers end. Later ones hold as many again as there have been.
CHUNK_STEPS = 8


class DecodingLimits(NamedTuple):
    """What decoding stops at, and how much it does at a time.

    max_new_tokens: of an answer. max_positions: of OPT, visual tokens and prompt included. leave: so many prompts, or
    fewer, whose answers have not ended when cache and mask would be laid out anew stay as they are. parts: the rows are
    decoded in so many, one after the other, of which each takes less memory and leaves its share.
    """

    max_new_tokens: int
    max_positions: int
    leave: int = 0
    parts: int = 1


class Decoded(NamedTuple):
    """token_ids: (Q, max_new_tokens), ended by a newline or `</s>` and filled up with padding.

    log_probabilities: the same shape, float32, of each of these among all tokens, 0 for padding; None unless wanted.
    new_tokens: (Q,) int64, of a question that was left how many it has; of one that has ended 0.
    """

    token_ids: Tensor
    log_probabilities: Tensor | None
    new_tokens: Tensor


class Layout(NamedTuple):
    """What is kept of the rows, and room for more.

    rows_R: numbers of the rows to keep, int64; None: all. slots_RC: of each, the slots to keep; both by the numbers
    that they have had. prompt_columns: of the packed prompts. old_slots: C, so far. steps: for how many tokens a slot
    there is to be room.
    """

    rows_R: Tensor | None
    slots_RC: Tensor
    prompt_columns: int
    old_slots: int
    steps: int

    def of_slots(self, values_RC: Tensor) -> Tensor:
        """What is kept of one value a slot."""
        return self.of_rows(values_RC).take_along_dim(self.slots_RC, dim=1)

    def of_rows(self, values: Tensor) -> Tensor:
        """What is kept of values that begin with a dimension of rows."""
        return values if self.rows_R is None else values.index_select(0, self.rows_R)

    def of_columns(self, held_RHLX: Tensor) -> Tensor:
        """What is kept of keys or values."""
        kept = self.of_rows(held_RHLX)
        prompts, own = kept[:, :, : self.prompt_columns], kept[:, :, self.prompt_columns :]
        if own.shape[2]:
            by_step = own.unflatten(2, (-1, self.old_slots))
            own = by_step.take_along_dim(self.slots_RC[:, None, None, :, None], dim=3).flatten(2, 3)
        num_rows, num_heads, num_written, width = *kept.shape[:2], prompts.shape[2] + own.shape[2], kept.shape[3]
        # Zeros: what the mask hides is multiplied by 0, and must be a number.
        num_columns = num_written + self.steps * self.slots_RC.shape[1]
        laid_out = held_RHLX.new_zeros((num_rows, num_heads, num_columns, width))
        laid_out[:, :, : self.prompt_columns] = prompts
        laid_out[:, :, self.prompt_columns : num_written] = own
        return laid_out


class ColumnCache(Cache):
    """Keys and values of all columns, written at given ones; the blocks that fill it need not know.

    columns_C: int64, where the next keys and values go; None: they are the first, and all there is.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.columns_C: Tensor | None = None
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keeps (R, H, C, X) of one block, and returns all that its queries may attend to, (R, H, L, X)."""
        if self.columns_C is None:
            self._held[layer_idx] = (key_states, value_states)
        else:
            for held, new in zip(self._held[layer_idx], (key_states, value_states), strict=True):
                held.index_copy_(2, self.columns_C, new)
        return self._held[layer_idx]

    def lay_out(self, layout: Layout) -> None:
        """Keeps what `layout` says; one block at a time, so that no other is there twice."""
        for block, (keys, values) in self._held.items():
            self._held[block] = (layout.of_columns(keys), layout.of_columns(values))


class EndWatch:
    """Tells when all questions have ended.

    look_back: on CUDA, 1 to look at the step before the last one, so that the device need not run dry while the host
    looks; the price is one step too many. 0 where a step takes so long that it matters: streamed blocks.
    """

    def __init__(self, look_back: int) -> None:
        self._look_back = look_back
        self._flags: deque[ToHost] = deque()

    def have_all_ended(self, ended_RC: Tensor) -> bool:
        """Whether they have, as far as is looked; to be asked once a step."""
        self._flags.append(ToHost(ended_RC.all()))
        if len(self._flags) <= self._look_back:
            return False
        return bool(self._flags.popleft().read()[0])


class _Answers:
    """The answers so far, and what the next step needs: tensors of (R, C) slots.

    ids, positions: of each slot's newest token. ended: whether it has its last one, or never had a question.
    left: how many tokens it may still have. places: where in the flattened first layout it was. mask_R1LL: whom the
    prompts' queries see. mask_R1CL: whom a slot's query sees. written: (steps, places) of the first layout, all tokens,
    filled up with padding. log_probabilities: of these, 0 for padding; None where nobody wants them.
    """

    def __init__(
        self, prompts: PackedPrompts, dtype: torch.dtype, limits: DecodingLimits, tokenizer: Any, with_probability: bool
    ) -> None:
        last_RC, self._pad_id = prompts.last_columns, tokenizer.pad_token_id
        self._end_ids = (newline_token_id(tokenizer), tokenizer.eos_token_id)
        self._last_position = limits.max_positions - 1
        self.positions_RC = prompts.position_ids.gather(1, last_RC)
        self.ids_RC = torch.full_like(last_RC, self._pad_id)
        self.ended_RC = ~prompts.is_asked
        self._left_RC = (limits.max_positions - 1 - self.positions_RC).clamp(max=limits.max_new_tokens)
        self._places_RC = torch.arange(last_RC.numel(), device=last_RC.device).view_as(last_RC)
        self.written = last_RC.new_full((limits.max_new_tokens, last_RC.numel()), self._pad_id)
        self.log_probabilities = self.written.float().zero_() if with_probability else None
        self.mask_R1LL = tree_attention_mask(prompts.subtree_end, dtype)
        self.mask_R1CL = self.mask_R1LL.take_along_dim(last_RC[:, None, :, None], dim=2)
        self._prompt_columns = self.mask_R1CL.shape[3]
        self._own_R1CC = self.mask_R1CL

    def take(self, step: int, logits_RCO: Tensor) -> None:
        """Adds the likeliest tokens of a step to the answers that have not ended."""
        best_RC = logits_RCO.argmax(dim=-1)
        self.ids_RC = best_RC.masked_fill(self.ended_RC, self._pad_id)
        self.written[step].index_copy_(0, self._places_RC.flatten(), self.ids_RC.flatten())
        if self.log_probabilities is not None:
            of_all_RCO = logits_RCO.float().log_softmax(dim=-1)
            of_best_RC = of_all_RCO.gather(2, best_RC[..., None])[..., 0].masked_fill(self.ended_RC, 0.0)
            self.log_probabilities[step].index_copy_(0, self._places_RC.flatten(), of_best_RC.flatten())
        self._left_RC -= 1
        newline, eos = self._end_ids
        self.ended_RC |= (self.ids_RC == newline) | (self.ids_RC == eos) | (self._left_RC <= 0)
        # Ended slots are computed along; their positions must be some.
        self.positions_RC = (self.positions_RC + 1).clamp(max=self._last_position)

    def layout(self, steps: int, leave: int) -> Layout | None:
        """All rows that have a question left, in each of them as many slots as the fullest has.

        None where only so many are left, in all, as may be left.
        """
        alive = (~self.ended_RC).sum(dim=1).tolist()
        rows = [row for row, number in enumerate(alive) if number]
        if sum(alive) <= leave:
            return None
        rows_R = None if len(rows) == len(alive) else torch.tensor(rows, device=self.ended_RC.device)
        ended_RC = self.ended_RC if rows_R is None else self.ended_RC.index_select(0, rows_R)
        living_first_RC = ended_RC.to(torch.uint8).argsort(dim=1, stable=True)
        return Layout(rows_R, living_first_RC[:, : max(alive)], self._prompt_columns, ended_RC.shape[1], steps)

    def lay_out(self, layout: Layout, cache: ColumnCache) -> None:
        """Goes over to a layout, and lets the cache write the next tokens into it."""
        num_rows, num_slots = layout.slots_RC.shape
        num_past = (self.mask_R1CL.shape[3] - self._prompt_columns) // layout.old_slots
        prompts_R1CL = layout.of_rows(self.mask_R1CL)[..., : self._prompt_columns]
        prompts_R1CL = prompts_R1CL.take_along_dim(layout.slots_RC[:, None, :, None], dim=2)
        self.ids_RC, self.positions_RC = layout.of_slots(self.ids_RC), layout.of_slots(self.positions_RC)
        self.ended_RC, self._left_RC = layout.of_slots(self.ended_RC), layout.of_slots(self._left_RC)
        self._places_RC = layout.of_slots(self._places_RC)
        num_columns = self._prompt_columns + (num_past + layout.steps) * num_slots
        device = prompts_R1CL.device
        self.mask_R1CL = closed_mask((num_rows, num_slots, num_columns), prompts_R1CL.dtype, device)
        self.mask_R1CL[..., : self._prompt_columns] = prompts_R1CL
        own_R1CC = closed_mask((num_rows, num_slots, num_slots), prompts_R1CL.dtype, device)
        self._own_R1CC = own_R1CC.masked_fill_(torch.eye(num_slots, dtype=torch.bool, device=device), 0.0)
        for past in range(num_past):
            start = self._prompt_columns + past * num_slots
            self.mask_R1CL[..., start : start + num_slots] = self._own_R1CC
        cache.lay_out(layout)
        start = self._prompt_columns + num_past * num_slots
        cache.columns_C = torch.arange(start, start + num_slots, device=device)

    def see_own(self, columns_C: Tensor) -> None:
        """Lets each slot's query see its own among the columns of the next tokens."""
        self.mask_R1CL.index_copy_(3, columns_C, self._own_R1CC)

    def decoded(self, steps: int) -> Decoded:
        """What there is after so many steps, of all places of the first layout."""
        new_tokens = torch.zeros_like(self.written[0])
        new_tokens.index_copy_(0, self._places_RC.flatten(), torch.where(self.ended_RC, 0, steps).flatten())
        log_probabilities = None if self.log_probabilities is None else self.log_probabilities.T
        return Decoded(self.written.T, log_probabilities, new_tokens)


def decode_greedily(
    language_model: Any,
    tokenizer: Any,
    prompts: PackedPrompts,
    embeds_RLD: Tensor,
    limits: DecodingLimits,
    look_back: int = 0,
    with_probability: bool = False,
) -> Decoded:
    """The new tokens of each question, the likeliest one after the other.

    Args:
        language_model: transformers' OPT, after `read_answer_columns`.
        embeds_RLD: what OPT reads of the prompts, visual tokens included.
        look_back: see `EndWatch`.
        with_probability: whether the tokens' log probabilities are wanted.
    """
    names = ("position_ids", "subtree_end", "last_columns", "is_asked")
    num_parts = min(limits.parts, len(embeds_RLD))
    limits = limits._replace(leave=limits.leave // num_parts)
    parts = []
    for rows in torch.arange(len(embeds_RLD)).tensor_split(num_parts):
        some = slice(int(rows[0]), int(rows[-1]) + 1)
        part = replace(prompts, **{name: getattr(prompts, name)[some] for name in names})
        watch = EndWatch(look_back if embeds_RLD.is_cuda else 0)
        parts.append(_decode_rows(language_model, tokenizer, part, embeds_RLD[some], limits, watch, with_probability))
    token_ids, log_probabilities, new_tokens = zip(*parts, strict=True)
    return Decoded(
        torch.cat(token_ids).index_select(0, prompts.places),
        torch.cat(log_probabilities).index_select(0, prompts.places) if with_probability else None,
        torch.cat(new_tokens).index_select(0, prompts.places),
    )


def _decode_rows(
    language_model: Any,
    tokenizer: Any,
    prompts: PackedPrompts,
    embeds_RLD: Tensor,
    limits: DecodingLimits,
    watch: EndWatch,
    with_probability: bool,
) -> Decoded:
    """What `decode_greedily` returns, of all places of the rows."""
    answers = _Answers(prompts, embeds_RLD.dtype, limits, tokenizer, with_probability)
    decoder, head = language_model.model.decoder, language_model.lm_head
    embed = language_model.get_input_embeddings()
    cache = ColumnCache()
    hidden_RCD = decoder(
        inputs_embeds=embeds_RLD,
        attention_mask=answers.mask_R1LL,
        position_ids=prompts.position_ids,
        past_key_values=cache,
        answer_columns=prompts.last_columns,
        use_cache=False,
    ).last_hidden_state
    answers.take(0, head(hidden_RCD))
    steps = next_layout = 1
    for step in range(1, limits.max_new_tokens):
        if watch.have_all_ended(answers.ended_RC):
            break
        if step == next_layout:
            chunk = max(CHUNK_STEPS, step - 1)
            layout = answers.layout(min(chunk, limits.max_new_tokens - step), limits.leave)
            if layout is None:
                break
            answers.lay_out(layout, cache)
            next_layout += chunk
        assert cache.columns_C is not None
        answers.see_own(cache.columns_C)
        hidden_RCD = decoder(
            inputs_embeds=embed(answers.ids_RC),
            attention_mask=answers.mask_R1CL,
            position_ids=answers.positions_RC,
            past_key_values=cache,
            use_cache=False,
        ).last_hidden_state
        cache.columns_C += answers.ids_RC.shape[1]
        answers.take(step, head(hidden_RCD))
        steps += 1
    return answers.decoded(steps)
