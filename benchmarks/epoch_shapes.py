"""The shapes that an epoch's batches have, as training would get them: how many distinct ones, and how much padding.

On a card a new shape costs plans, allocations and graphs; padding costs products. Batches are taken where the training
loop takes them, from `artkv.datasets.batches.training_loader` with the loop's own arguments, and nothing is trained.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from step_clock import write_figures
from torch import Tensor
from turns import EndOfTurns

import artkv.training.loop as loop
from artkv.batch import Batch, PackedQuestions
from artkv.config import Config
from artkv.distributed import process_group
from artkv.training.run import train


@dataclass
class EpochShapes:
    """What was counted. rows_columns: distinct (R, L); with_answer_columns: (R, L, C); with_answers: (R, L, C, A);
    all_tensors: distinct sets of the shapes of all tensors of the questions, with the number of paintings.

    tokens: computed by OPT's blocks, R x L; padding_tokens: those of them that stand for nothing. answer_columns:
    R x C, that the last block computes; answers: A. largest, smallest: R x L of a batch.
    """

    steps: int = 0
    batches: int = 0
    questions: int = 0
    paintings: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    answer_columns: int = 0
    answers: int = 0
    largest: int = 0
    smallest: int | None = None
    rows_columns: int = 0
    with_answer_columns: int = 0
    with_answers: int = 0
    all_tensors: int = 0
    _seen: dict[str, set[Any]] = field(default_factory=dict)

    def add(self, batch: Batch, num_visual_tokens: int) -> None:
        """Counts a micro-batch. num_visual_tokens: that an unpacked row has beside its text."""
        questions = batch.questions
        if isinstance(questions, PackedQuestions):
            rows, columns = questions.token_ids.shape
            computed, answers = questions.answer_columns.numel(), questions.answer_ids.numel()
            padding = packed_padding(questions)
        else:
            rows, columns = questions.input_ids.shape
            columns += num_visual_tokens
            computed, answers = rows * columns, questions.answer_places.numel()
            padding = int((questions.attention_mask == 0).sum())
        self.batches += 1
        self.questions += len(batch.rows)
        self.paintings += len(batch.paintings)
        self.tokens += rows * columns
        self.padding_tokens += padding
        self.answer_columns += computed
        self.answers += answers
        self.largest = max(self.largest, rows * columns)
        self.smallest = min(self.smallest or rows * columns, rows * columns)
        tensors = {name: tuple(value.shape) for name, value in vars(questions).items() if isinstance(value, Tensor)}
        for name, shape in (
            ("rows_columns", (rows, columns)),
            ("with_answer_columns", (rows, columns, computed // rows)),
            ("with_answers", (rows, columns, computed // rows, answers)),
            ("all_tensors", (len(batch.paintings), *sorted(tensors.items()))),
        ):
            self._seen.setdefault(name, set()).add(shape)
            setattr(self, name, len(self._seen[name]))

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self)
        del found["_seen"]
        return found | {
            "padding_share": self.padding_tokens / max(self.tokens, 1),
            "tokens_per_question": self.tokens / max(self.questions, 1),
            "answers_per_question": self.answers / max(self.questions, 1),
        }


def packed_padding(questions: PackedQuestions) -> int:
    """Columns that are seen by themselves alone and stand at position 0, where each sequence's first token stands.

    A first token is a painting's first visual one, which others see.
    """
    own_end_L = torch.arange(1, questions.subtree_end.shape[1] + 1)
    return int(((questions.position_ids == 0) & (questions.subtree_end == own_end_L)).sum())


def run_epoch_shapes(path: Path, tree: dict[str, Any], steps: int) -> None:
    """The process of a row: the first epoch of a training by `tree`, at most so many steps of it."""
    shapes = EpochShapes()
    original = loop.training_loader

    def counting(*inputs: Any, **options: Any) -> Iterator[list[Batch]]:
        for batches in original(*inputs, **options):
            for batch in batches:
                shapes.add(batch, visual_tokens)
            shapes.steps += 1
            if shapes.steps == steps:
                break
        write_figures(path, shapes.figures())
        raise EndOfTurns
        yield []

    config = Config.model_validate(tree)
    visual_tokens = _num_visual_tokens(config)
    loop.training_loader = counting  # type: ignore[assignment]
    with process_group(timeout_minutes=10) as world, suppress(EndOfTurns):
        train(config, None, world)


def _num_visual_tokens(config: Config) -> int:
    from artkv.models.assembly import num_visual_tokens
    from artkv.models.files.blip2_files import read_folder_config

    folder = read_folder_config(Path(config.model.blip2), config.model.blip2)
    return num_visual_tokens(config, int(folder.num_query_tokens))
