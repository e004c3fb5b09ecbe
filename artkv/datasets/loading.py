"""Loads batches in worker processes: pictures decoded, questions tokenised, in the planned order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from artkv.batch import Batch, PaintingViews
from artkv.datasets.order import EpochPlan, MicroBatch, TrainingShard, evaluation_shard
from artkv.datasets.pictures import PaintingTransform, open_picture
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import (
    IGNORED_LABEL,
    EncodedQuestion,
    Tokenizer,
    collate_questions,
    encode_for_training,
    encode_prompt,
)
from artkv.errors import UserError


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way out of a worker; DataLoader would bury its message in a traceback."""

    message: str


class QuestionDataset(Dataset):
    """Builds the `Batch` of each micro-batch in a sequence of them.

    with_answers: true for training (labels on the answers), false for generation (prompts alone).
    blank: true puts a plain grey picture in the place of each painting. art_source: (paintings,) int64,
    for each painting the one that the EfficientNet looks at in its place; None: itself.

    An item is a `Batch`. Each distinct painting of a micro-batch is decoded once.
    """

    def __init__(
        self,
        table: QuestionTable,
        micro_batches: Sequence[MicroBatch],
        tokenizer: Tokenizer,
        transform: PaintingTransform,
        prompt: str,
        with_answers: bool,
        blank: bool = False,
        art_source: np.ndarray | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise UserError("the tokenizer has no padding token; use the tokenizer that belongs to model.blip2")
        self._table = table
        self._micro_batches = micro_batches
        self._tokenizer = tokenizer
        self._pad_token_id = tokenizer.pad_token_id
        self._transform = transform
        self._prompt = prompt
        self._with_answers = with_answers
        self._blank = transform.blank() if blank else None
        self._art_source = art_source

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __getitem__(self, index: int) -> Batch:
        micro_batch = self._micro_batches[index]
        rows = [int(row) for row in micro_batch.rows]
        places: dict[int, int] = {}
        painting_index = [places.setdefault(int(self._table.painting_of_row[row]), len(places)) for row in rows]
        first_rows = [rows[painting_index.index(place)] for place in range(len(places))]
        views = [self._views(row) for row in first_rows]
        questions = collate_questions(
            [self._encode(row) for row in rows],
            painting_index,
            weight=0.0 if micro_batch.is_filler else 1.0,
            pad_token_id=self._pad_token_id,
        )
        paintings = PaintingViews(torch.stack([v for v, _ in views]), torch.stack([e for _, e in views]))
        return Batch(paintings, questions, tuple(rows))

    def _encode(self, row: int) -> EncodedQuestion:
        question = self._table.questions[row]
        try:
            if self._with_answers:
                answer = self._table.answers[row]
                return encode_for_training(self._tokenizer, self._prompt, question, answer)
            prompt_ids = encode_prompt(self._tokenizer, self._prompt, question)
            return prompt_ids, [IGNORED_LABEL] * len(prompt_ids)
        except UserError as error:
            raise UserError(f"{self._table.place(row)}: {error}") from None

    def _views(self, row: int) -> tuple[Tensor, Tensor]:
        """The two views of a row's painting; a picture that fails is named with its file and CSV line."""
        if self._blank is not None:
            return self._blank
        painting = int(self._table.painting_of_row[row])
        art_painting = painting if self._art_source is None else int(self._art_source[painting])
        try:
            picture = open_picture(self._table.painting_paths[painting])
            if art_painting == painting:
                return self._transform(picture)
            art_picture = open_picture(self._table.painting_paths[art_painting])
        except UserError as error:
            raise UserError(f"{self._table.place(row)}: {error}") from None
        return self._transform.vit_view(picture), self._transform.efficientnet_view(art_picture)


def training_loader(
    table: QuestionTable,
    plan: EpochPlan,
    tokenizer: Tokenizer,
    transform: PaintingTransform,
    prompt: str,
    first_step: int,
    micro_batches_per_step: int,
    accumulation: int,
    rank: int,
    world: int,
    workers: int,
    pin_memory: bool,
    start_method: str | None = None,
) -> Iterator[list[Batch]]:
    """Yields, for each step of the epoch from `first_step` on, this rank's `accumulation` batches.

    A step comes whole because its loss is divided by the answer tokens of all its micro-steps.
    micro_batches_per_step must be accumulation * world. workers: processes that decode, 0 for none.
    start_method: fork, forkserver or spawn; None for the platform's default. Raises `UserError`, naming
    file and CSV line, for a picture that fails though it was right when it was checked.
    """
    if micro_batches_per_step != accumulation * world:
        raise ValueError(
            f"{micro_batches_per_step} micro-batches a step are not {world} ranks x {accumulation} micro-steps"
        )
    shard = TrainingShard(plan, first_step, accumulation, rank, world)
    dataset = QuestionDataset(table, shard, tokenizer, transform, prompt, with_answers=True)
    return _by_step(_load(dataset, workers, pin_memory, start_method), accumulation)


def evaluation_loader(
    table: QuestionTable,
    plan: EpochPlan,
    tokenizer: Tokenizer,
    transform: PaintingTransform,
    prompt: str,
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
    dataset = QuestionDataset(table, shard, tokenizer, transform, prompt, with_answers, blank, art_source)
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
    # The texts are short; a pool of tokenizer threads, once used, does not survive a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        _Catching(dataset),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=start_method if workers else None,
        # DataLoader draws a seed for its workers; not from the generator that training uses.
        generator=torch.Generator().manual_seed(0),
    )
    with _signals_blocked():
        items = iter(loader)
    for item in items:
        if isinstance(item, _Failure):
            raise UserError(item.message)
        yield item


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
