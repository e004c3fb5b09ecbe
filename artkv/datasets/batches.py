"""Prepares batches beside training, in the planned order: paintings decoded or read, token ids padded.

Threads of the rank do it, not processes: decoding, resizing and reading leave the interpreter free for nine tenths of
their time. Threads need no fork, which can hang in a process that has others, copy no batch, and are not hit by the
signals that a job's processes get.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from artkv.batch import Batch, PackedQuestions, QuestionBatch
from artkv.datasets.order import EpochPlan, MicroBatch, TrainingShard, evaluation_shard
from artkv.datasets.packing import PackingSettings, pack_questions
from artkv.datasets.painting_source import PaintingSource
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import collate_questions
from artkv.datasets.tokenized_table import TokenizedTable

# Batches that are ready before they are asked for, beside one for each worker that is being prepared.
_BATCHES_READY = 2


class QuestionDataset:
    """Builds the `Batch` of each micro-batch in a sequence of them.

    with_answers: true for training (labels on the answers), false for generation (prompts alone).
    blank: true puts a plain grey picture in the place of each painting. art_source: (paintings,) int64,
    for each painting the one that the EfficientNet looks at in its place; None: itself. packing: how questions
    are packed; None: one row a question.
    pin_memory: whether paintings should lie in page-locked memory already.

    An item is a `Batch`. Each distinct painting of a micro-batch is loaded once. Several threads may use it.
    """

    def __init__(
        self,
        table: QuestionTable,
        tokenized: TokenizedTable,
        micro_batches: Sequence[MicroBatch],
        paintings: PaintingSource,
        with_answers: bool,
        blank: bool = False,
        art_source: np.ndarray | None = None,
        packing: PackingSettings | None = None,
        pin_memory: bool = False,
    ) -> None:
        self._painting_of_row = table.painting_of_row
        self._tokenized = tokenized
        self._micro_batches = micro_batches
        self._paintings = paintings
        self._with_answers = with_answers
        self._blank = blank
        self._art_source = art_source
        self._packing = packing
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, index: int) -> Batch:
        micro_batch = self._micro_batches[index]
        rows = [int(row) for row in micro_batch.rows]
        places: dict[int, int] = {}
        painting_index = [places.setdefault(int(self._painting_of_row[row]), len(places)) for row in rows]
        encode = self._tokenized.for_training if self._with_answers else self._tokenized.for_generation
        encoded = [encode(row) for row in rows]
        weight, pad_token_id = 0.0 if micro_batch.is_filler else 1.0, self._tokenized.pad_token_id
        questions: QuestionBatch | PackedQuestions
        if self._packing is None:
            questions = collate_questions(encoded, painting_index, weight, pad_token_id)
        else:
            questions = pack_questions(encoded, painting_index, weight, pad_token_id, self._packing)
        if self._blank:
            return Batch(self._paintings.load_blank(len(places), self._pin_memory), questions, tuple(rows))
        numbers = np.fromiter(places, dtype=np.int64)
        art_numbers = numbers if self._art_source is None else self._art_source[numbers]
        return Batch(self._paintings.load(numbers, art_numbers, self._pin_memory), questions, tuple(rows))


def training_loader(
    table: QuestionTable,
    tokenized: TokenizedTable,
    plan: EpochPlan,
    paintings: PaintingSource,
    first_step: int,
    micro_batches_per_step: int,
    accumulation: int,
    rank: int,
    world: int,
    workers: int,
    pin_memory: bool,
    packing: PackingSettings | None = None,
) -> Iterator[list[Batch]]:
    """Yields, for each step of the epoch from `first_step` on, this rank's `accumulation` batches.

    A step comes whole because its loss is divided by the answer tokens of all its micro-steps.
    micro_batches_per_step must be accumulation * world. workers: threads that prepare batches, one or more.
    packing: how questions are packed; None: one row a question. Raises `UserError`, naming file and CSV line,
    for a picture that fails though it was right when it was checked.
    """
    if micro_batches_per_step != accumulation * world:
        raise ValueError(
            f"{micro_batches_per_step} micro-batches a step are not {world} ranks x {accumulation} micro-steps"
        )
    shard = TrainingShard(plan, first_step, accumulation, rank, world)
    dataset = QuestionDataset(
        table, tokenized, shard, paintings, with_answers=True, packing=packing, pin_memory=pin_memory
    )
    return _by_step(_load(dataset, workers, pin_memory), accumulation)


def evaluation_loader(
    table: QuestionTable,
    tokenized: TokenizedTable,
    plan: EpochPlan,
    paintings: PaintingSource,
    rank: int,
    world: int,
    workers: int,
    pin_memory: bool,
    with_answers: bool = False,
    blank: bool = False,
    art_source: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yields this rank's batches of an evaluation planned by `plan_evaluation`, each question once.

    The options are those of `QuestionDataset` and `training_loader`.
    """
    shard = evaluation_shard(plan, rank, world)
    dataset = QuestionDataset(
        table, tokenized, shard, paintings, with_answers, blank, art_source, pin_memory=pin_memory
    )
    return _load(dataset, workers, pin_memory)


def _load(dataset: QuestionDataset, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches in order. Closing the iterator waits for those that are being prepared, and for no other."""
    # A thread begins on device 0, where page-locking would make a context of its own for every rank.
    device = torch.cuda.current_device() if pin_memory else None

    def prepare(index: int) -> Batch:
        if device is not None:
            torch.cuda.set_device(device)
        batch = dataset[index]
        return batch.pin_memory() if pin_memory else batch

    indices = iter(range(len(dataset)))
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers, "artkv-batches") as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(prepare, index))
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
