"""Prepares batches beside training, in the planned order: paintings decoded or read, token ids padded.

Threads of the rank do it, not processes: decoding, resizing and reading leave the interpreter free for nine tenths of
their time. Threads need no fork, which can hang in a process that has others, copy no batch, and are not hit by the
signals that a job's processes get.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from artkv.batch import Batch, PackedQuestions, QuestionBatch
from artkv.datasets.order import EpochPlan, MicroBatch, evaluation_micro_batches, training_micro_batches
from artkv.datasets.packing import PackingSettings, pack_questions
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.tokenization import collate_questions
from artkv.distributed import World

# Batches that are ready before they are asked for, beside one for each worker that is being prepared.
_BATCHES_READY = 2


@dataclass(frozen=True)
class BatchMaker:
    """Makes the `Batch` of a micro-batch; each distinct painting of it is loaded once. Several threads may use it.

    with_answers: true for training (labels on the answers), false for generation (prompts alone).
    pin_memory: whether tensors should lie in page-locked memory. packing: how questions are packed; None: one row a
    question. blank: true puts a plain grey picture in the place of each painting. art_source: (paintings,) int64, for
    each painting the one that the EfficientNet looks at in its place; None: itself.
    """

    questions: QuestionSet
    with_answers: bool
    pin_memory: bool = False
    packing: PackingSettings | None = None
    blank: bool = False
    art_source: np.ndarray | None = None

    def __call__(self, micro_batch: MicroBatch) -> Batch:
        painting_of_row = self.questions.table.painting_of_row
        tokenized, paintings = self.questions.tokenized, self.questions.paintings
        rows = [int(row) for row in micro_batch.rows]
        places: dict[int, int] = {}
        painting_index = [places.setdefault(int(painting_of_row[row]), len(places)) for row in rows]
        encode = tokenized.for_training if self.with_answers else tokenized.for_generation
        encoded = [encode(row) for row in rows]
        weight, pad_token_id = 0.0 if micro_batch.is_filler else 1.0, tokenized.pad_token_id
        questions: QuestionBatch | PackedQuestions
        if self.packing is None:
            questions = collate_questions(encoded, painting_index, weight, pad_token_id)
        else:
            questions = pack_questions(encoded, painting_index, weight, pad_token_id, self.packing)
        if self.blank:
            return Batch(paintings.load_blank(len(places), self.pin_memory), questions, tuple(rows))
        numbers = np.fromiter(places, dtype=np.int64)
        art_numbers = numbers if self.art_source is None else self.art_source[numbers]
        return Batch(paintings.load(numbers, art_numbers, self.pin_memory), questions, tuple(rows))


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
    make = BatchMaker(questions, with_answers=True, pin_memory=world.device.type == "cuda", packing=packing)
    return _by_step(_load(make, micro_batches, workers), accumulation)


def evaluation_loader(
    questions: QuestionSet,
    plan: EpochPlan,
    world: World,
    workers: int,
    with_answers: bool = False,
    blank: bool = False,
    art_source: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields this rank's batches of an evaluation planned by `plan_evaluation`, each question once.

    The options are those of `BatchMaker` and `training_loader`.
    """
    pin_memory = world.device.type == "cuda"
    make = BatchMaker(questions, with_answers, pin_memory, blank=blank, art_source=art_source)
    return _load(make, evaluation_micro_batches(plan, world.rank, world.size), workers)


def _load(make: BatchMaker, micro_batches: Iterator[MicroBatch], workers: int) -> Iterator[Batch]:
    """The batches in order. Closing the iterator waits for those that are being prepared, and for no other."""
    # A thread begins on device 0, where page-locking would make a context of its own for every rank.
    device = torch.cuda.current_device() if make.pin_memory else None

    def prepare(micro_batch: MicroBatch) -> Batch:
        if device is not None:
            torch.cuda.set_device(device)
        batch = make(micro_batch)
        return batch.pin_memory() if make.pin_memory else batch

    waiting: deque[Future[Batch]] = deque()
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
