"""Answers every question of a table, each exactly once, with the prefix on, off or shuffled.

Letters in tensor names are explained in `artkv.batch`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from artkv.evaluation.generation import Generation
from artkv.evaluation.run_roles import masked_encoders, masked_folder
from artkv.evaluation.scores import Scores, score_predictions
from artkv.kv_modulation import Use
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.models.opt.packed_sequences import paintings_together
from artkv.reading import printable

PrefixMode = Literal["on", "off", "shuffled"]
Features = tuple[Tensor, ...]
ImageMode = Literal["on", "blank"]


@dataclass(frozen=True)
class Ablation:
    """What the model is shown.

    prefix: on; off, stock cross-attention; shuffled, the prefix of another painting.
    image: on; blank, a grey picture for all encoders, which leaves the question alone.
    encoder: the one art encoder whose part is off or shuffled, by its name, beside all others on; None: all together.
    """

    prefix: PrefixMode = "on"
    image: ImageMode = "on"
    encoder: str | None = None

    @property
    def name(self) -> str:
        """Such as `off`, `on-blank` or `brushwork-off`; names the folder of the results."""
        prefix = self.prefix if self.encoder is None else masked_folder(self.encoder, self.prefix)
        return prefix if self.image == "on" else f"{prefix}-{self.image}"

    @property
    def conditions(self) -> dict[str, str]:
        """The fields by their names, as `metrics.json` has them: `encoder` only where there is one."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def use(self, sources: Sequence[str]) -> Use:
        """Which encoders' parts are on; sources: the names of all."""
        if self.prefix != "off" or self.encoder is None:
            return self.prefix != "off"
        return [name != self.encoder for name in sources]

    def art_of(self, sources: Sequence[str], own: Features, of_others: Features) -> Features:
        """What each encoder says of the painting that is shown: its own, or where it is shuffled another one's."""
        if self.prefix != "shuffled":
            return own
        if self.encoder is None:
            return of_others
        pairs = zip(sources, own, of_others, strict=True)
        return tuple(other if name == self.encoder else one for name, one, other in pairs)


# What the model was trained on.
AS_TRAINED = Ablation()
# A blank picture with a prefix made of a blank picture: what the question alone gives away.
QUESTION_ONLY = Ablation("on", "blank")
ALL_ABLATIONS = (AS_TRAINED, Ablation("off"), Ablation("shuffled"), QUESTION_ONLY)


def all_ablations(config: Config) -> list[Ablation]:
    """What `--all-ablations` means for a run: with several art encoders each of them by itself too, the blank last.

    A control has no prefix that could be shuffled.
    """
    together = [one for one in ALL_ABLATIONS if config.kv_modulation.enabled or one.prefix != "shuffled"]
    prefixes: tuple[PrefixMode, ...] = ("off", "shuffled")
    masked = [Ablation(prefix, encoder=name) for name in masked_encoders(config) for prefix in prefixes]
    return [*together[:-1], *masked, together[-1]]


def check_ablations(ablations: Sequence[Ablation], config: Config, place: str) -> None:
    """Raises `UserError` for what the run of a config cannot be shown. place: what the message begins with."""
    if not config.kv_modulation.enabled and any(one.prefix == "shuffled" for one in ablations):
        raise UserError(
            f"{place}: was trained with kv_modulation.enabled: false and has no prefix to shuffle; "
            "leave --prefix shuffled out",
            on_all_ranks=True,
        )
    known = masked_encoders(config)
    for one in ablations:
        if one.encoder is None or one.encoder in known:
            continue
        given = f"--prefix {one.prefix}:{printable(one.encoder[:80])}"
        if known:
            wrong = f"the encoders of {place} are {', '.join(known)}; give one of these"
        else:
            number = "one art encoder alone" if config.used_encoders else "no art encoder"
            wrong = f"{place} has {number}; give --prefix {one.prefix}"
        raise UserError(f"{given}: {wrong}", on_all_ranks=True)


# Questions of a rank between two meetings: a meeting waits for the slowest rank, a stop for the next meeting.
QUESTIONS_BETWEEN_MEETINGS = 64
# Paintings that are encoded at a time: an art encoder takes dozens of MB for each, which must not grow with the batch.
PAINTINGS_AT_ONCE = 16
# Of those that are encoded: the Q-Former takes some 3 MB for each, and as long for a few as for one.
FEATURES_AT_ONCE = 128


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
    assert make.shown.num_visual is not None
    generation = Generation(
        model, questions.tokenized, make.shown.num_visual, settings.max_new_tokens, rows_at_once * number
    )
    scored: dict[int, list[NDArray[np.float64]]] = {}
    left = len(range(world.rank, plan.num_micro_batches, world.size))
    with torch.no_grad():
        # All ranks count the same rounds, since they meet in some; a rank may have no batch in the last one.
        for round_number in range(1, -(-plan.num_micro_batches // world.size) + 1):
            batch = next(batches, None)
            if batch is not None:
                left -= 1
                answer = partial(_answer, model, batch, generation, world, ablations)
                scored |= model.in_room(partial(answer, is_last=not left))
                generation.finish(is_last=not left)
                advance(len(batch.rows))
            if gives_up is not None and round_number % between_meetings == 0 and _any(gives_up(), world):
                raise GaveUp
    texts: dict[tuple[int, int], str] = {}
    for (some_texts, some_scored), gave_up in world.gather(
        ((generation.texts, scored), gives_up is not None and gives_up())
    ):
        if gave_up:
            raise GaveUp
        texts |= some_texts
        scored |= some_scored
    if len(texts) != number * len(table):
        raise RuntimeError(f"{len(texts)} answers to {number} x {len(table)} questions of {table.path}")
    rows = range(len(table))
    return [Answered([texts[row, way] for row in rows], [scored[row][way] for row in rows]) for way in range(number)]


def _shown(model: KVModulatedBlip2, ablations: Sequence[Ablation], num_paintings: int, seed: int) -> Shown:
    prefixes = [ablation.prefix for ablation in ablations if ablation.image == "on"]
    return Shown(
        are_blank=tuple(ablation.image == "blank" for ablation in ablations),
        has_own_art=any(one.prefix == "on" or one.encoder is not None for one in ablations if one.image == "on"),
        art_source=shuffled_painting_index(num_paintings, seed) if "shuffled" in prefixes else None,
        num_visual=tuple(model.visual_token_count(one.use(_sources(model, one))) for one in ablations),
    )


def _answer(
    model: KVModulatedBlip2,
    batch: AnsweringBatch,
    generation: Generation,
    world: World,
    ablations: Sequence[Ablation],
    is_last: bool,
) -> dict[int, list[NDArray[np.float64]]]:
    """Generates the batch's answers, and returns each row's choices' log likelihoods, of an ablation each."""
    on_device = batch.to(world.device, non_blocking=True)
    visual_IKD = _visual_tokens(model, on_device, ablations)
    flat = model.log_likelihoods(visual_IKD, on_device.choices).cpu().numpy() if batch.choices else np.zeros(0)
    ends = np.cumsum([*batch.num_choices] * len(ablations))
    log_likelihoods = np.split(flat, ends[:-1])
    generation.answer(on_device, visual_IKD, is_last)
    number = len(batch.rows)
    return {row: log_likelihoods[place::number] for place, row in enumerate(batch.rows)}


def _visual_tokens(model: KVModulatedBlip2, batch: AnsweringBatch, ablations: Sequence[Ablation]) -> Tensor:
    """What OPT reads of the paintings, (I, K, D), ablation after ablation, as the prompts count them.

    Where the injection adds visual tokens, and an ablation has none of them, zeros that nothing sees stand there.
    """
    parts: dict[Ablation, list[Tensor]] = {ablation: [] for ablation in ablations}
    paintings, other_art = batch.paintings, batch.other_art
    at_once = PAINTINGS_AT_ONCE if isinstance(paintings, PaintingViews) else FEATURES_AT_ONCE
    for start in range(0, 0 if paintings is None else len(paintings), at_once):
        assert paintings is not None
        some = slice(start, start + at_once)
        features = features_of(model, paintings[some])
        art = features.art_features
        others = art if other_art is None else tuple(one[some] for one in other_art)
        if other_art is not None and isinstance(paintings, PaintingViews):
            others = model.encode_art(others)
        for ablation in ablations:
            if ablation.image == "on":
                sources = _sources(model, ablation)
                shown = PaintingFeatures(features.image_features, ablation.art_of(sources, art, others))
                parts[ablation].append(model.visual_tokens(shown, use_prefix=ablation.use(sources)))
    if batch.blank is not None:
        features = features_of(model, batch.blank)
        for ablation in ablations:
            if ablation.image == "blank":
                parts[ablation].append(
                    model.visual_tokens(features, use_prefix=ablation.use(_sources(model, ablation)))
                )
    return paintings_together((part for of_one in parts.values() for part in of_one), model.num_visual_tokens)


def _sources(model: KVModulatedBlip2, ablation: Ablation) -> tuple[str, ...]:
    """The names among which the ablation's encoder is; empty where it is of all together."""
    names = () if ablation.encoder is None else model.source_names
    if ablation.encoder is not None and ablation.encoder not in names:
        raise ValueError(f"{ablation}: the model's art encoders are {list(names)}")
    return names


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
