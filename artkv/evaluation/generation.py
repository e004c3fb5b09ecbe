"""Generates a table's answers batch by batch, of which the long ones are finished together.

A pass through OPT reads all of its weights, from host memory where its blocks stream, however few answers still go on.
So a batch leaves its last few answers where they are, and those of several batches go on as one batch, whose prompts
are the questions with what there is of their answers.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from artkv.batch import AnsweringBatch
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.models.cuda_recorder import give_back_unused, is_out_of_memory
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.models.opt.decoding import Decoded

# A batch leaves one answer in so many: to go on with it costs a prompt's pass again, and half as much memory again.
SHARE_LEFT = 8


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the questions about a painting see, (K, D), of which the last may be padding."""

    visual_KD: Tensor
    num_visual: int


@dataclass(frozen=True)
class _Open:
    """An answer that goes on. places: (row, way) of all that ask it. tokens: so far."""

    places: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    seen: _Seen


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
        self._max_new_tokens = max_new_tokens
        # Fewer than questions: these share paintings, and their answers have most of their tokens still to come.
        self._open_at_once = max(1, at_once // 2)
        self._open: list[_Open] = []
        self._parts = 1

    def answer(self, batch: AnsweringBatch, visual_IKD: Tensor, is_last: bool) -> None:
        """Generates the batch's answers; it and what its questions see are on the device. is_last: of this rank."""
        prompts = batch.prompts
        asked: dict[int, list[int]] = {}  # equal prompts on a painting have one place, and one answer
        for number, place in enumerate(prompts.places.tolist()):
            asked.setdefault(place, []).append(number)
        # The last batch has none to wait for; with others that are open it may leave some to them.
        leave = 0 if is_last and not self._open else len(asked) // SHARE_LEFT
        decoded = self._decode(
            len(prompts.token_ids),
            lambda parts: self._model.generate_tokens(visual_IKD, prompts, self._max_new_tokens, leave, parts),
        )
        whose = [(row, way) for way in range(len(self._num_visual)) for row in batch.rows]
        tokens, lengths = decoded.token_ids.tolist(), decoded.new_tokens.tolist()
        texts = self._model.answers_of(decoded.token_ids)
        seen: dict[int, _Seen] = {}
        found: list[_Open] = []
        for numbers in asked.values():
            first, places = numbers[0], tuple(whose[number] for number in numbers)
            if lengths[first]:
                painting = batch.painting_index[first]
                if painting not in seen:  # a view would keep what the whole batch sees
                    seen[painting] = _Seen(visual_IKD[painting].clone(), self._num_visual[places[0][1]])
                found.append(_Open(places, tuple(tokens[first][: lengths[first]]), seen[painting]))
            else:
                self.texts |= dict.fromkeys(places, texts[first])
        self._open += found

    def finish(self, is_last: bool) -> None:
        """Goes on with the open answers: with all of them, or where there are enough for a batch."""
        while self._open and (is_last or len(self._open) >= self._open_at_once):
            some, rest = self._open[: self._open_at_once], self._open[self._open_at_once :]
            leave = 0 if is_last and not rest else len(some) // SHARE_LEFT
            self._open = rest + self._go_on(some, leave)

    def _go_on(self, some: list[_Open], leave: int) -> list[_Open]:
        """Ends most of the answers and returns the others."""
        model, tokenized = self._model, self._tokenized
        packing = PackingSettings(model.num_visual_tokens, model.backbone.language_model_width)
        numbers = {seen: number for number, seen in enumerate(dict.fromkeys(one.seen for one in some))}
        prompts = pack_prompts(
            [[*tokenized.for_generation(one.places[0][0])[0], *one.tokens] for one in some],
            [numbers[one.seen] for one in some],
            tokenized.pad_token_id,
            packing,
            [seen.num_visual for seen in numbers],
        )
        most = self._max_new_tokens - min(len(one.tokens) for one in some)

        def generate(parts: int) -> Decoded:
            visual_IKD = torch.stack([seen.visual_KD for seen in numbers])
            return model.generate_tokens(visual_IKD, prompts.to(visual_IKD.device), most, leave, parts)

        decoded = self._decode(len(prompts.token_ids), generate)
        new_tokens = decoded.token_ids.tolist()
        tokens = [[*one.tokens, *new][: self._max_new_tokens] for one, new in zip(some, new_tokens, strict=True)]
        still_open = []
        for one, text, of_one, length in zip(
            some, model.answers_of(tokens), tokens, decoded.new_tokens.tolist(), strict=True
        ):
            so_far = len(one.tokens) + length
            if length and so_far < self._max_new_tokens:
                still_open.append(_Open(one.places, tuple(of_one[:so_far]), one.seen))
            else:
                self.texts |= dict.fromkeys(one.places, text)
        return still_open

    def _decode(self, num_rows: int, call: Callable[[int], Decoded]) -> Decoded:
        """What `call` returns; if memory runs out, it is called again with twice as many parts, and so for good.

        call: gets the number of parts in which the rows are decoded.
        """
        while True:
            parts = min(self._parts, num_rows)
            try:
                return self._model.in_room(partial(call, parts))
            except RuntimeError as error:
                if not is_out_of_memory(error) or parts == num_rows:
                    raise
            # Behind the `except`, so that what the failed call had made is gone.
            self._parts = 2 * parts
            give_back_unused()
            print(
                f"artkv: memory ran out beside {num_rows} rows of questions; they are answered in {self._parts} parts, "
                "which takes longer; a lower evaluation.batch_size would fit at once",
                file=sys.stderr,
            )
