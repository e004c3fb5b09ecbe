"""Answers every question of a table, each exactly once, with the prefix on, off or shuffled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from artkv.batch import Batch, PaintingViews, QuestionBatch
from artkv.config import Config
from artkv.datasets.batches import evaluation_loader
from artkv.datasets.order import plan_evaluation
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import QuestionTable
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.scores import Scores, score_predictions, shuffled_painting_index
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

PrefixMode = Literal["on", "off", "shuffled"]
ImageMode = Literal["on", "blank"]


@dataclass(frozen=True)
class Ablation:
    """What the model is shown.

    prefix: on; off, stock cross-attention; shuffled, the prefix of another painting.
    image: on; blank, a grey picture for both encoders, which leaves the question alone.
    """

    prefix: PrefixMode = "on"
    image: ImageMode = "on"

    @property
    def name(self) -> str:
        """Such as `off` or `on-blank`; names the folder of the results."""
        return self.prefix if self.image == "on" else f"{self.prefix}-{self.image}"


# What the model was trained on.
AS_TRAINED = Ablation()
# A blank picture with a prefix made of a blank picture: what the question alone gives away.
QUESTION_ONLY = Ablation("on", "blank")
ALL_ABLATIONS = (AS_TRAINED, Ablation("off"), Ablation("shuffled"), QUESTION_ONLY)
# Batches of a rank between two meetings: a meeting waits for the slowest rank, a stop for the next meeting.
BATCHES_BETWEEN_MEETINGS = 4


@dataclass(frozen=True)
class AnsweringSettings:
    """How answers are generated.

    batch_size: most questions of a rank at once. workers: threads of a rank that prepare batches. seed: of whose
    prefix a painting gets where they are shuffled.
    """

    batch_size: int
    max_new_tokens: int
    workers: int
    seed: int


class GaveUp(Exception):
    """Answering was broken off, on all ranks together."""


def answering_settings(config: Config) -> AnsweringSettings:
    """How a config has questions answered."""
    evaluation = config.evaluation
    return AnsweringSettings(
        evaluation.batch_size, evaluation.max_new_tokens, config.dataset.workers, config.training.seed
    )


def answer_questions(
    model: KVModulatedBlip2,
    questions: QuestionSet,
    settings: AnsweringSettings,
    world: World,
    ablation: Ablation = AS_TRAINED,
    advance: Callable[[int], None] = lambda questions: None,
    gives_up: Callable[[], bool] | None = None,
) -> list[str]:
    """The answers in the order of the table's rows, whole on every rank.

    Called on all ranks; they split the questions and meet once, at the end. `advance` is told how many
    questions this rank has answered since the last call. With `gives_up` they also meet every few batches; where
    it is true on any rank, all raise `GaveUp` after the same number of batches.
    """
    if ablation.prefix == "shuffled" and ablation.image == "blank":
        raise UserError("prefix shuffled with image blank: all blank pictures have one prefix; choose one of the two")
    table, art_source = questions.table, None
    if ablation.prefix == "shuffled":
        art_source = shuffled_painting_index(table.num_paintings, settings.seed)
    plan = plan_evaluation(table.painting_of_row, settings.batch_size)
    batches = evaluation_loader(
        questions, plan, world, settings.workers, blank=ablation.image == "blank", art_source=art_source
    )
    answered: dict[int, str] = {}
    with torch.no_grad():
        # All ranks count the same rounds, since they meet in some; a rank may have no batch in the last one.
        for round_number in range(1, -(-plan.num_micro_batches // world.size) + 1):
            batch = next(batches, None)
            if batch is not None:
                answered |= _answers(model, batch, settings, world, ablation)
                advance(len(batch.rows))
            if gives_up is not None and round_number % BATCHES_BETWEEN_MEETINGS == 0 and _any(gives_up(), world):
                raise GaveUp
    everything: dict[int, str] = {}
    for part, gave_up in world.gather((answered, gives_up is not None and gives_up())):
        if gave_up:
            raise GaveUp
        everything |= part
    if len(everything) != len(table):
        raise RuntimeError(f"{len(everything)} answers to {len(table)} questions of {table.path}")
    return [everything[row] for row in range(len(table))]


def _answers(
    model: KVModulatedBlip2, batch: Batch, settings: AnsweringSettings, world: World, ablation: Ablation
) -> dict[int, str]:
    on_device = batch.to(world.device, non_blocking=True)
    shown, questions = on_device.paintings, on_device.questions
    assert isinstance(questions, QuestionBatch)
    features = model.encode(shown) if isinstance(shown, PaintingViews) else shown
    visual_tokens = model.visual_tokens(features, use_prefix=ablation.prefix != "off")
    answers = model.generate_answers(visual_tokens, questions, settings.max_new_tokens)
    return dict(zip(batch.rows, answers, strict=True))


def _any(flag: bool, world: World) -> bool:
    return world.all_reduce_sum(torch.tensor(float(flag), device=world.device)).item() > 0


def score_answers(answers: list[str], table: QuestionTable, bootstrap_samples: int, seed: int) -> Scores:
    """Scores of `answers` to the whole table, with intervals that resample paintings."""
    return score_predictions(
        answers,
        list(table.answers),
        list(table.question_types),
        bootstrap_samples,
        seed,
        cluster=table.painting_of_row.tolist(),
    )
