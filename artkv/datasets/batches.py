"""Prepares batches beside training, in the planned order: paintings decoded or read, token ids padded.

Threads of the rank do it, not processes: decoding, resizing and reading leave the interpreter free for nine tenths of
their time. Threads need no fork, which can hang in a process that has others, copy no batch, and are not hit by the
signals that a job's processes get.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from artkv.batch import AnsweringBatch, Batch, PackedChoices, PackedQuestions, QuestionBatch
from artkv.datasets.choice_packing import PossibleAnswer, Tokens, pack_choices
from artkv.datasets.order import EpochPlan, MicroBatch, evaluation_micro_batches, training_micro_batches
from artkv.datasets.packing import PackingSettings, pack_questions
from artkv.datasets.prompt_packing import pack_prompts
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.tokenization import collate_questions
from artkv.distributed import World

Made = TypeVar("Made", Batch, AnsweringBatch)
Made_co = TypeVar("Made_co", Batch, AnsweringBatch, covariant=True)

# Batches that are ready before they are asked for, beside one for each worker that is being prepared.
_BATCHES_READY = 2


@dataclass(frozen=True)
class BatchMaker:
    """Makes the `Batch` of a micro-batch to train on; each distinct painting is loaded once. Threads may share it.

    pin_memory: whether tensors should lie in page-locked memory. packing: how questions are packed; None: one row a
    question.
    """

    questions: QuestionSet
    pin_memory: bool = False
    packing: PackingSettings | None = None

    def __call__(self, micro_batch: MicroBatch) -> Batch:
        tokenized, paintings = self.questions.tokenized, self.questions.paintings
        rows = [int(row) for row in micro_batch.rows]
        numbers, painting_index = self.questions.distinct_paintings(rows)
        encoded = [tokenized.for_training(row) for row in rows]
        weight, pad_token_id = 0.0 if micro_batch.is_filler else 1.0, tokenized.pad_token_id
        questions: QuestionBatch | PackedQuestions
        if self.packing is None:
            questions = collate_questions(encoded, painting_index, weight, pad_token_id)
        else:
            questions = pack_questions(encoded, painting_index, weight, pad_token_id, self.packing)
        return Batch(paintings.load(numbers, numbers, self.pin_memory), questions, tuple(rows))


@dataclass(frozen=True)
class Shown:
    """The ways in which each painting of an evaluation is shown, and its questions asked.

    are_blank: for each way, whether a plain grey picture stands in the painting's place. has_own_art: whether a way
    needs what the art encoders say of the painting itself. art_source: (paintings,) int64, for each painting the one
    that the art encoders look at in its place in another way; None: there is no such way. num_visual: for each way,
    how many visual tokens a painting has in it; None: as many in all.
    """

    are_blank: tuple[bool, ...] = (False,)
    has_own_art: bool = True
    art_source: np.ndarray | None = None
    num_visual: tuple[int, ...] | None = None


@dataclass(frozen=True)
class AnsweringBatchMaker:
    """Makes the `AnsweringBatch` of a micro-batch; each distinct painting is loaded once for all ways.

    Several threads may use it. pin_memory, packing: see `BatchMaker`. choices_at_once: most answers that are scored in
    one forward pass.
    """

    questions: QuestionSet
    shown: Shown
    packing: PackingSettings
    choices_at_once: int
    pin_memory: bool = False

    def __call__(self, micro_batch: MicroBatch) -> AnsweringBatch:
        source, tokenized = self.questions.paintings, self.questions.tokenized
        shown, pin_memory = self.shown, self.pin_memory
        rows = [int(row) for row in micro_batch.rows]
        numbers, painting_index = self.questions.distinct_paintings(rows)
        all_index: list[int] = []
        num_seen: list[int] = []
        num_paintings = 0
        for way, is_blank in enumerate(shown.are_blank):
            of_this_way = 1 if is_blank else len(numbers)
            all_index += [num_paintings + (0 if is_blank else place) for place in painting_index]
            num_paintings += of_this_way
            num_seen += [
                self.packing.num_visual_tokens if shown.num_visual is None else shown.num_visual[way]
            ] * of_this_way
        prompts = [tokenized.for_generation(row)[0] for row in rows] * len(shown.are_blank)
        choices = self.questions.choices
        answers = [() if choices is None else choices.of_row(row) for row in rows]
        paintings = other_art = None
        if not all(shown.are_blank):
            others = numbers if shown.art_source is None else shown.art_source[numbers]
            paintings = source.load(numbers, numbers if shown.has_own_art else others, pin_memory)
            if shown.has_own_art and shown.art_source is not None:
                other_art = source.load_art(others, pin_memory)
        return AnsweringBatch(
            paintings,
            other_art,
            source.load_blank(1, pin_memory) if any(shown.are_blank) else None,
            pack_prompts(prompts, all_index, tokenized.pad_token_id, self.packing, num_seen),
            self._choices(prompts, all_index, answers * len(shown.are_blank), num_seen),
            tuple(rows),
            tuple(len(of_row) for of_row in answers),
            tuple(all_index),
        )

    def _choices(
        self,
        prompts: Sequence[list[int]],
        painting_index: Sequence[int],
        answers: Sequence[Sequence[Tokens]],
        num_seen: Sequence[int],
    ) -> tuple[PackedChoices, ...]:
        """The answers to choose among, of all prompts one after the other, `choices_at_once` together."""
        pad_token_id = self.questions.tokenized.pad_token_id
        flat = [
            PossibleAnswer(painting, tuple(prompt), answer)
            for prompt, painting, of_prompt in zip(prompts, painting_index, answers, strict=True)
            for answer in of_prompt
        ]
        parts = (flat[start : start + self.choices_at_once] for start in range(0, len(flat), self.choices_at_once))
        return tuple(pack_choices(part, pad_token_id, self.packing, num_seen) for part in parts)


def training_loader(
    questions: QuestionSet,
    plan: EpochPlan,
    first_step: int,
    accumulation: int,
    world: World,
    workers: int,
    packing: PackingSettings | None = None,
) -> Iterator[list[Batch]]:
    """Yields, for each step of the epoch from `first_step` on, this rank's `accumulation` batches.

    A step comes whole because its loss is divided by the answer tokens of all its micro-steps.
    workers: threads that prepare batches, one or more. packing: how questions are packed; None: one row a question.
    Raises `UserError`, naming file and CSV line, for a picture that fails though it was right when it was checked.
    """
    micro_batches = training_micro_batches(plan, first_step, accumulation, world.rank, world.size)
    make = BatchMaker(questions, pin_memory=world.device.type == "cuda", packing=packing)
    return _by_step(_load(make, micro_batches, workers), accumulation)


def answering_loader(
    make: AnsweringBatchMaker, plan: EpochPlan, world: World, workers: int
) -> Iterator[AnsweringBatch]:
    """Yields this rank's batches of an evaluation planned by `plan_evaluation`, to be answered.

    workers: see `training_loader`.
    """
    return _load(make, evaluation_micro_batches(plan, world.rank, world.size), workers)


class _Maker(Protocol[Made_co]):
    @property
    def pin_memory(self) -> bool: ...
    def __call__(self, micro_batch: MicroBatch) -> Made_co: ...


def _load(make: _Maker[Made], micro_batches: Iterator[MicroBatch], workers: int) -> Iterator[Made]:
    """The batches in order. Closing the iterator waits for those that are being prepared, and for no other."""
    # A thread begins on device 0, where page-locking would make a context of its own for every rank.
    device = torch.cuda.current_device() if make.pin_memory else None

    def prepare(micro_batch: MicroBatch) -> Made:
        if device is not None:
            torch.cuda.set_device(device)
        batch = make(micro_batch)
        return batch.pin_memory() if make.pin_memory else batch

    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers, "artkv-batches") as pool:
        try:
            for micro_batch in micro_batches:
                waiting.append(pool.submit(prepare, micro_batch))
                if len(waiting) == workers + _BATCHES_READY:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _by_step(batches: Iterator[Batch], accumulation: int) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    for batch in batches:
        step.append(batch)
        if len(step) == accumulation:
            yield step
            step = []
