"""Answers every question of a table, each exactly once, with the prefix on, off or shuffled.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from artkv.batch import AnsweringBatch, PaintingFeatures, PaintingViews
from artkv.config import Config
from artkv.datasets.batches import AnsweringBatchMaker, Shown, answering_loader
from artkv.datasets.order import plan_evaluation
from artkv.datasets.packing import PackingSettings
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import QuestionTable
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.batch_size import automatic_batch_size
from artkv.evaluation.scores import Scores, score_predictions
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
# Questions of a rank between two meetings: a meeting waits for the slowest rank, a stop for the next meeting.
QUESTIONS_BETWEEN_MEETINGS = 64
# Paintings that are encoded at a time: an art encoder takes dozens of MB for each, which must not grow with the batch.
PAINTINGS_AT_ONCE = 16


@dataclass(frozen=True)
class AnsweringSettings:
    """How answers are generated.

    batch_size: most questions of a rank at once, a question counted once for each ablation; None: as many as memory
    holds. workers: threads of a rank that prepare batches. seed: of whose prefix a painting gets where they are
    shuffled.
    """

    batch_size: int | None
    max_new_tokens: int
    workers: int
    seed: int


class Answered(NamedTuple):
    """What a model says to a table's questions, in the order of its rows.

    texts: the answers that it generates. log_likelihoods: of each question's choices, (choices,) float64;
    empty where it has none.
    """

    texts: list[str]
    log_likelihoods: list[NDArray[np.float64]]


class GaveUp(Exception):
    """Answering was broken off, on all ranks together."""


def answering_settings(config: Config) -> AnsweringSettings:
    """How a config has questions answered."""
    evaluation = config.evaluation
    batch_size = None if evaluation.batch_size == "auto" else evaluation.batch_size
    return AnsweringSettings(batch_size, evaluation.max_new_tokens, config.dataset.workers, config.training.seed)


def answer_questions(
    model: KVModulatedBlip2,
    questions: QuestionSet,
    settings: AnsweringSettings,
    world: World,
    ablation: Ablation = AS_TRAINED,
    advance: Callable[[int], None] = lambda questions: None,
    gives_up: Callable[[], bool] | None = None,
) -> list[str]:
    """The generated answers under one ablation; see `answer_under`."""
    return answer_under(model, questions, settings, world, [ablation], advance, gives_up)[0].texts


def answer_under(
    model: KVModulatedBlip2,
    questions: QuestionSet,
    settings: AnsweringSettings,
    world: World,
    ablations: Sequence[Ablation],
    advance: Callable[[int], None] = lambda questions: None,
    gives_up: Callable[[], bool] | None = None,
) -> list[Answered]:
    """For each ablation the answers in the order of the table's rows, whole on every rank.

    A picture is loaded and encoded once for all ablations, and its questions are answered in one batch. Their choices,
    if they have any, are scored after it, as many at once as questions are answered at once.

    Called on all ranks; they split the questions and meet at the end, and at the start if they have to agree on a
    batch size. `advance` is told how many questions this rank has answered since the last call, under all ablations.
    With `gives_up` they also meet every few batches; where it is true on any rank, all raise `GaveUp` after the same
    number of batches.
    """
    if any(ablation.prefix == "shuffled" and ablation.image == "blank" for ablation in ablations):
        raise UserError("prefix shuffled with image blank: all blank pictures have one prefix; choose one of the two")
    table, backbone = questions.table, model.backbone
    number = len(ablations)
    if settings.batch_size is None:
        rows_at_once = automatic_batch_size(model, questions, settings.max_new_tokens, number, world)
    else:
        rows_at_once = max(1, settings.batch_size // number)
    plan = plan_evaluation(table.painting_of_row, rows_at_once)
    make = AnsweringBatchMaker(
        questions,
        _shown(model, ablations, table.num_paintings, settings.seed),
        PackingSettings(model.num_visual_tokens, backbone.language_model_width),
        choices_at_once=rows_at_once * number,
        pin_memory=world.device.type == "cuda",
    )
    batches = answering_loader(make, plan, world, settings.workers)
    between_meetings = max(1, QUESTIONS_BETWEEN_MEETINGS // (rows_at_once * number))
    answered: dict[int, Answered] = {}
    with torch.no_grad():
        # All ranks count the same rounds, since they meet in some; a rank may have no batch in the last one.
        for round_number in range(1, -(-plan.num_micro_batches // world.size) + 1):
            batch = next(batches, None)
            if batch is not None:
                answered |= _answers(model, batch, settings, world, ablations)
                advance(len(batch.rows))
            if gives_up is not None and round_number % between_meetings == 0 and _any(gives_up(), world):
                raise GaveUp
    everything: dict[int, Answered] = {}
    for part, gave_up in world.gather((answered, gives_up is not None and gives_up())):
        if gave_up:
            raise GaveUp
        everything |= part
    if len(everything) != len(table):
        raise RuntimeError(f"{len(everything)} answers to {len(table)} questions of {table.path}")
    rows = [everything[row] for row in range(len(table))]
    return [
        Answered([row.texts[way] for row in rows], [row.log_likelihoods[way] for row in rows]) for way in range(number)
    ]


def _shown(model: KVModulatedBlip2, ablations: Sequence[Ablation], num_paintings: int, seed: int) -> Shown:
    prefixes = [ablation.prefix for ablation in ablations if ablation.image == "on"]
    return Shown(
        are_blank=tuple(ablation.image == "blank" for ablation in ablations),
        has_own_art="on" in prefixes,
        art_source=shuffled_painting_index(num_paintings, seed) if "shuffled" in prefixes else None,
        num_visual=tuple(model.visual_token_count(ablation.prefix != "off") for ablation in ablations),
    )


def _answers(
    model: KVModulatedBlip2,
    batch: AnsweringBatch,
    settings: AnsweringSettings,
    world: World,
    ablations: Sequence[Ablation],
) -> dict[int, Answered]:
    """What is said to each row, an ablation each."""
    on_device = batch.to(world.device, non_blocking=True)
    visual_IKD = _visual_tokens(model, on_device, ablations)
    texts = model.generate_answers(visual_IKD, on_device.prompts, settings.max_new_tokens)
    scored = [model.log_likelihoods(visual_IKD, choices).cpu().numpy() for choices in on_device.choices]
    flat = np.concatenate([np.zeros(0), *scored])
    number = len(batch.rows)
    ends = np.cumsum([*batch.num_choices] * len(ablations))
    log_likelihoods = np.split(flat, ends[:-1])
    return {row: Answered(texts[place::number], log_likelihoods[place::number]) for place, row in enumerate(batch.rows)}


def _visual_tokens(model: KVModulatedBlip2, batch: AnsweringBatch, ablations: Sequence[Ablation]) -> Tensor:
    """What OPT reads of the paintings, (I, K, D), ablation after ablation, as the prompts count them.

    Where the injection adds visual tokens, and an ablation has none of them, zeros that nothing sees stand there.
    """
    parts: dict[Ablation, list[Tensor]] = {ablation: [] for ablation in ablations}
    paintings, other_art = batch.paintings, batch.other_art
    for start in range(0, 0 if paintings is None else len(paintings), PAINTINGS_AT_ONCE):
        assert paintings is not None
        some = slice(start, start + PAINTINGS_AT_ONCE)
        features = features_of(model, paintings[some])
        art = features.art_features
        others = art if other_art is None else tuple(one[some] for one in other_art)
        if other_art is not None and isinstance(paintings, PaintingViews):
            others = model.encode_art(others)
        for ablation in ablations:
            if ablation.image == "on":
                shown_art = others if ablation.prefix == "shuffled" else art
                shown = PaintingFeatures(features.image_features, shown_art)
                parts[ablation].append(model.visual_tokens(shown, use_prefix=ablation.prefix != "off"))
    if batch.blank is not None:
        features = features_of(model, batch.blank)
        for ablation in ablations:
            if ablation.image == "blank":
                parts[ablation].append(model.visual_tokens(features, use_prefix=ablation.prefix != "off"))
    most = model.num_visual_tokens
    return torch.cat(
        [pad(part, (0, 0, 0, most - part.shape[1])) for of_ablation in parts.values() for part in of_ablation]
    )


def features_of(model: KVModulatedBlip2, paintings: PaintingViews | PaintingFeatures) -> PaintingFeatures:
    """What the frozen encoders say of the paintings, computed where it was not cached."""
    return model.encode(paintings) if isinstance(paintings, PaintingViews) else paintings


def _any(flag: bool, world: World) -> bool:
    return world.all_reduce_sum(torch.tensor(float(flag), device=world.device)).item() > 0


def shuffled_painting_index(num_paintings: int, seed: int) -> NDArray[np.int64]:
    """For each painting the one whose prefix it gets instead of its own, shape (num_paintings,).

    A permutation that leaves no painting in its place: one random cycle through all of them. Raises
    `UserError` for fewer than two paintings, which cannot be exchanged.
    """
    if num_paintings < 2:
        raise UserError(
            f"prefix = shuffled: the split has {num_paintings} painting(s), and exchanging prefixes takes "
            "two; use a split with more paintings, or the prefix on or off"
        )
    order = np.random.default_rng(seed).permutation(num_paintings)
    index = np.empty(num_paintings, dtype=np.int64)
    index[order] = np.roll(order, 1)
    return index


def score_answers(
    answers: list[str], table: QuestionTable, bootstrap_samples: int, seed: int, extras: Sequence[str] = ()
) -> Scores:
    """Scores of `answers` to the whole table, with intervals that resample paintings; see `score_predictions`."""
    return score_predictions(
        answers,
        list(table.answers),
        list(table.question_types),
        bootstrap_samples,
        seed,
        cluster=table.painting_of_row.tolist(),
        extras=extras,
    )
