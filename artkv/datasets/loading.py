"""Loads batches beside training, in the planned order: paintings decoded or read, token ids padded.

Pictures are decoded in worker processes. Where there are none, and where features come from a cache, one
thread of this process prepares the next batches: decoding and reading release the interpreter lock.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from artkv.batch import Batch, PackedQuestions, QuestionBatch
from artkv.datasets.order import EpochPlan, MicroBatch, TrainingShard, evaluation_shard
from artkv.datasets.packing import PackingSettings, pack_questions
from artkv.datasets.painting_source import PaintingSource
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import collate_questions
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.errors import UserError

# Batches that the thread keeps ready, beside the one it works on.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way out of a worker; DataLoader would bury its message in a traceback."""

    message: str


class QuestionDataset(Dataset):
    """Builds the `Batch` of each micro-batch in a sequence of them.

    with_answers: true for training (labels on the answers), false for generation (prompts alone).
    blank: true puts a plain grey picture in the place of each painting. art_source: (paintings,) int64,
    for each painting the one that the EfficientNet looks at in its place; None: itself. packing: how questions
    are packed; None: one row a question.
    pin_memory: whether paintings should lie in page-locked memory already.

    An item is a `Batch`. Each distinct painting of a micro-batch is loaded once. Holds arrays, and no list
    or text that would be copied into each worker.
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
    start_method: str | None = None,
) -> Iterator[list[Batch]]:
    """Yields, for each step of the epoch from `first_step` on, this rank's `accumulation` batches.

    A step comes whole because its loss is divided by the answer tokens of all its micro-steps.
    micro_batches_per_step must be accumulation * world. workers: processes that decode, 0 for a thread of
    this process; it is a thread as well where `paintings` are features, which need no processes.
    packing: how questions are packed; None: one row a question.
    start_method: fork, forkserver or spawn; None for the platform's default. Raises `UserError`, naming
    file and CSV line, for a picture that fails though it was right when it was checked.
    """
    if micro_batches_per_step != accumulation * world:
        raise ValueError(
            f"{micro_batches_per_step} micro-batches a step are not {world} ranks x {accumulation} micro-steps"
        )
    shard = TrainingShard(plan, first_step, accumulation, rank, world)
    workers = workers if paintings.needs_processes else 0
    dataset = QuestionDataset(
        table, tokenized, shard, paintings, with_answers=True, packing=packing, pin_memory=pin_memory and not workers
    )
    return _by_step(_load(dataset, workers, pin_memory, start_method), accumulation)


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
    start_method: str | None = None,
) -> Iterator[Batch]:
    """Yields this rank's batches of an evaluation planned by `plan_evaluation`, each question once.

    The options are those of `QuestionDataset` and `training_loader`.
    """
    shard = evaluation_shard(plan, rank, world)
    workers = workers if paintings.needs_processes else 0
    dataset = QuestionDataset(
        table, tokenized, shard, paintings, with_answers, blank, art_source, pin_memory=pin_memory and not workers
    )
    return _load(dataset, workers, pin_memory, start_method)


class _Catching(Dataset):
    """A dataset whose user errors come back as items."""

    def __init__(self, dataset: QuestionDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Batch | _Failure:
        try:
            return self._dataset[index]
        except UserError as error:
            return _Failure(str(error))


def _load(dataset: QuestionDataset, workers: int, pin_memory: bool, start_method: str | None) -> Iterator[Batch]:
    items = (
        _from_processes(_Catching(dataset), workers, pin_memory, start_method)
        if workers
        else _from_thread(_Catching(dataset), pin_memory)
    )
    for item in items:
        if isinstance(item, _Failure):
            raise UserError(item.message)
        yield item


def _from_processes(
    dataset: "_Catching", workers: int, pin_memory: bool, start_method: str | None
) -> Iterator[Batch | _Failure]:
    # transformers warns of tokenizer threads at each fork, though no worker tokenises.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        dataset,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=start_method,
        # DataLoader draws a seed for its workers; not from the generator that training uses.
        generator=torch.Generator().manual_seed(0),
    )
    with _signals_blocked():
        items = iter(loader)
    yield from items


def _from_thread(dataset: "_Catching", pin_memory: bool) -> Iterator[Batch | _Failure]:
    """The items in order, made by one thread up to `_BATCHES_AHEAD` before they are asked for."""
    ready: queue.Queue[Batch | _Failure | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
    is_over = threading.Event()
    # A thread begins on device 0, where page-locking would make a context of its own for every rank.
    device = torch.cuda.current_device() if pin_memory else None

    def put(item: Batch | _Failure | BaseException | None) -> None:
        while not is_over.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            for index in range(len(dataset)):
                if is_over.is_set():
                    return
                item = dataset[index]
                put(item.pin_memory() if pin_memory and isinstance(item, Batch) else item)
            put(None)
        except BaseException as error:  # raised again where the items are asked for
            put(error)

    thread = threading.Thread(target=produce, name="artkv-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_over.set()


def _by_step(batches: Iterator[Batch], accumulation: int) -> Iterator[list[Batch]]:
    step: list[Batch] = []
    for batch in batches:
        step.append(batch)
        if len(step) == accumulation:
            yield step
            step = []


def _unchanged(item: Any) -> Any:
    return item


# What stops a run between two steps. It often goes to all processes of a job, and workers that it ended would fail
# the run before it could save; they end with their rank.
_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR1})


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Workers that start inside of this are born with the stop signals blocked; here those arrive afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the ranks' own threads need the cores
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # one that was not forked has no mask of its rank's
    threading.Thread(target=_heed_the_rank_alone, name="signals", daemon=True).start()


def _heed_the_rank_alone() -> None:
    """Ends this worker when its own rank terminates it, and takes no notice of anybody else's signals."""
    rank = multiprocessing.parent_process()
    while True:
        received = signal.sigwaitinfo(_STOP_SIGNALS)
        if received.si_signo == signal.SIGTERM and rank is not None and received.si_pid == rank.pid:
            os._exit(0)
