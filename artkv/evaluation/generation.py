"""Generates a table's answers batch by batch, of which the long ones are finished together.

A pass through OPT reads all of its weights, from host memory where its blocks stream, however few answers still go on.
So a batch leaves its last few answers where they are, and those of several batches go on as one batch, whose prompts
are the questions with what there is of their answers.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from artkv.batch import AnsweringBatch
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.models.cuda_recorder import give_back_unused, is_out_of_memory
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

T = TypeVar("T")

# A batch leaves so many of its answers: to go on with one of them costs what beginning with one does.
SHARE_LEFT = 8


@dataclass(frozen=True)
class _Open:
    """An answer that goes on. row, way: whose. tokens: so far. visual_KD, num_visual: what its question sees."""

    row: int
    way: int
    tokens: tuple[int, ...]
    visual_KD: Tensor
    num_visual: int


class Generation:
    """The generated answers of one rank.

    texts: of each (row of the table, way in which its painting is shown) that has ended. num_visual: for each way, how
    many visual tokens a painting has in it. at_once: about how many questions of a batch, a way of asking one counted
    for itself.
    """

    def __init__(
        self,
        model: KVModulatedBlip2,
        tokenized: TokenizedTable,
        num_visual: tuple[int, ...],
        max_new_tokens: int,
        at_once: int,
    ) -> None:
        self.texts: dict[tuple[int, int], str] = {}
        self._model, self._tokenized, self._num_visual = model, tokenized, num_visual
        self._max_new_tokens, self._at_once = max_new_tokens, at_once
        self._open: list[_Open] = []
        self._parts = 1

    def in_parts(self, batch: AnsweringBatch, call: Callable[[int], T]) -> T:
        """What `call` returns; if memory runs out, it is called again with twice as many parts, and so for good.

        call: gets the number of parts in which the batch's rows are decoded.
        """
        return self._in_parts(len(batch.prompts.token_ids), call)

    def answer(self, batch: AnsweringBatch, visual_IKD: Tensor, is_last: bool, parts: int) -> None:
        """Generates the batch's answers; it and what its questions see are on the device. is_last: of this rank."""
        prompts = batch.prompts
        # The last batch has none to wait for; with others that are open it may leave some to them.
        leave = 0 if is_last and not self._open else len(prompts) // SHARE_LEFT
        decoded = self._model.generate_tokens(visual_IKD, prompts, self._max_new_tokens, leave, parts)
        places = [(row, way) for way in range(len(self._num_visual)) for row in batch.rows]
        tokens, lengths = decoded.token_ids.tolist(), decoded.new_tokens.tolist()
        texts = self._model.answers_of(decoded.token_ids)
        for place, text, painting, of_one, length in zip(
            places, texts, batch.painting_index, tokens, lengths, strict=True
        ):
            if length:
                row, way = place
                visual_KD = visual_IKD[painting].clone()  # a view would keep those of the whole batch
                self._open.append(_Open(row, way, tuple(of_one[:length]), visual_KD, self._num_visual[way]))
            else:
                self.texts[place] = text

    def finish(self, is_last: bool) -> None:
        """Goes on with the open answers: with all of them, or where there are enough for a batch."""
        while self._open and (is_last or len(self._open) >= self._at_once):
            some, rest = self._open[: self._at_once], self._open[self._at_once :]
            leave = 0 if is_last and not rest else len(some) // SHARE_LEFT
            self._open = rest + self._go_on(some, leave)

    def _go_on(self, some: list[_Open], leave: int) -> list[_Open]:
        """Ends most of the answers and returns the others."""
        model, tokenized = self._model, self._tokenized
        packing = PackingSettings(model.num_visual_tokens, model.backbone.language_model_width)
        prompts = pack_prompts(
            [[*tokenized.for_generation(one.row)[0], *one.tokens] for one in some],
            range(len(some)),
            tokenized.pad_token_id,
            packing,
            [one.num_visual for one in some],
        ).to(some[0].visual_KD.device)
        visual_IKD = torch.stack([one.visual_KD for one in some])
        most = self._max_new_tokens - min(len(one.tokens) for one in some)
        decoded = self._in_parts(
            len(prompts.token_ids), lambda parts: model.generate_tokens(visual_IKD, prompts, most, leave, parts)
        )
        tokens = [
            [*one.tokens, *new][: self._max_new_tokens]
            for one, new in zip(some, decoded.token_ids.tolist(), strict=True)
        ]
        still_open = []
        for one, text, of_one, length in zip(
            some, model.answers_of(tokens), tokens, decoded.new_tokens.tolist(), strict=True
        ):
            so_far = len(one.tokens) + length
            if length and so_far < self._max_new_tokens:
                still_open.append(_Open(one.row, one.way, tuple(of_one[:so_far]), one.visual_KD, one.num_visual))
            else:
                self.texts[one.row, one.way] = text
        return still_open

    def _in_parts(self, num_rows: int, call: Callable[[int], T]) -> T:
        while True:
            parts = self._parts
            try:
                return self._model.in_room(lambda: call(parts))  # noqa: B023
            except RuntimeError as error:
                if not is_out_of_memory(error) or parts >= num_rows:
                    raise
            # Behind the `except`, so that what the failed call had made is gone.
            self._parts = 2 * parts
            give_back_unused()
            print(
                f"artkv: memory ran out beside {num_rows} rows of questions; they are answered in {self._parts} parts, "
                "which takes longer; a lower evaluation.batch_size would fit at once",
                file=sys.stderr,
            )
