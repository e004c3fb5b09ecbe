"""What is asked of a model between epochs: its answers' scores, and what its cross-attention does with the prefix."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from artkv.datasets.pictures import open_picture
from artkv.datasets.table import QuestionTable
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.answering import GaveUp, answer_questions, answering_settings, score_answers
from artkv.evaluation.attention import (
    PaintingAttention,
    attention_of,
    looks_of,
    mass_over_paintings,
    sizes_over_paintings,
)
from artkv.monitoring.cards import AnsweredQuestion
from artkv.monitoring.run_log import RunLog
from artkv.session import Session
from artkv.training.loop import Validate
from artkv.training.stops import RunStops

_PICTURES_IN_TENSORBOARD = 8
# Enough for a mean that tells one epoch from another, few enough to cost little beside the answers.
_PAINTINGS_LOOKED_AT = 64


def validation(session: Session, log: RunLog, stops: RunStops) -> Validate:
    """Answers the validation split and logs it; see `Validate`."""
    questions, world, settings = session.questions["val"], session.world, answering_settings(session.config)
    table, most_pixels = questions.table, session.config.dataset.max_pixels
    samples = stratified_rows(table, _PICTURES_IN_TENSORBOARD)
    looked_at = one_row_a_painting(table, _PAINTINGS_LOOKED_AT, samples)

    def validate(step: int) -> float | None:
        session.model.make_room()
        try:
            answers = answer_questions(session.model, questions, settings, world, gives_up=stops.is_asked)
        except GaveUp:
            return None
        attentions = _attention_together(session, looked_at, world)

        def score_and_log() -> float:
            scores = score_answers(answers, table, bootstrap_samples=1, seed=settings.seed)  # means alone
            names = ("exact_match", "bleu", "bleu_artquest", "token_f1")
            metrics = {name: getattr(scores.overall, name).value for name in names}
            metrics |= {f"exact_match/{kind}": group.exact_match.value for kind, group in scores.by_type.items()}
            has_prefix, mass = session.model.has_prefix, None
            if has_prefix:
                each_once = list({int(table.painting_of_row[one.row]): one for one in attentions}.values())
                metrics |= attention_metrics(session, each_once)
                if (over_paintings := mass_over_paintings(each_once)) is not None:
                    mass, _ = over_paintings
            try:
                shown = [
                    AnsweredQuestion(
                        open_picture(table.painting_paths[int(table.painting_of_row[row])], max_pixels=most_pixels),
                        table.questions[row], table.answers[row], answers[row], looks_of(attention, has_prefix),
                    )
                    for row, attention in zip(samples, attentions, strict=False)
                ]  # fmt: skip
            except UserError as error:  # training may have all features, and need the pictures no more
                log.note(f"step {step}: no pictures in TensorBoard: {error}")
                shown = []
            log.shown(step, shown, mass)
            log.validation(step, metrics)
            log.note(f"step {step}: validation exact match {metrics['exact_match']:.3f}")
            return metrics["exact_match"]

        # The others wait here, and know of an error.
        return world.broadcast(world.on_main(score_and_log))

    return validate


def attention_metrics(session: Session, attentions: Sequence[PaintingAttention]) -> dict[str, float]:
    """What cross-attention does with what is injected, over some paintings; what has no meaning for a way is left out.

    attention/mass: what of the attention lies on the prefix, the mean over layers, heads and paintings, and mass_spread
    its standard deviation over paintings; mass/layer_Z of one layer. Lengths of a head's key and value vectors, of
    prefix and image. What the injection's `record` has as sizes, by their names. gate: `tanh(g)`, where there is a
    gate; of several gates the mean, and gate/layer_Z that of one layer.
    """
    injection = session.model.parts.injection
    assert injection is not None
    metrics: dict[str, Any] = {}
    masses = [attention.mass for attention in attentions if attention.mass is not None]
    if masses:
        mass = np.stack(masses)  # (I, Z, H)
        metrics |= {"attention/mass": mass.mean(), "attention/mass_spread": mass.mean(axis=(1, 2)).std()}
        metrics |= {f"attention/mass/layer_{layer}": mass[:, layer].mean() for layer in range(mass.shape[1])}
    for name in ("prefix_key_norm", "image_key_norm", "prefix_value_norm", "image_value_norm"):
        if injection.has_prefix_tokens or name.startswith("image"):
            metrics[f"attention/{name}"] = np.mean([getattr(attention, name) for attention in attentions])
    metrics |= {f"attention/{name}": size for name, size in sizes_over_paintings(attentions).items()}
    if (gate := session.model.prefix_gate) is not None:
        metrics["attention/gate"] = gate.mean().item()
        if gate.numel() > 1:
            metrics |= {f"attention/gate/layer_{layer}": one.mean().item() for layer, one in enumerate(gate)}
    return {name: float(value) for name, value in metrics.items()}


def stratified_rows(table: QuestionTable, number: int) -> list[int]:
    """Rows of all question types in turn, a type's spread over the table, each of another painting while it has one.

    Always the same for a table, so that their answers can be followed.
    """
    by_type: dict[str, list[int]] = {}
    for row, kind in enumerate(table.question_types):
        by_type.setdefault(kind, []).append(row)
    left = {kind: _spread(by_type[kind]) for kind in sorted(by_type)}
    chosen: list[int] = []
    seen: set[int] = set()
    for kind in itertools.cycle(left):
        if len(chosen) == min(number, len(table)):
            break
        if rows := left[kind]:
            row = next((row for row in rows if int(table.painting_of_row[row]) not in seen), rows[0])
            rows.remove(row)
            chosen.append(row)
            seen.add(int(table.painting_of_row[row]))
    return chosen


def _spread(rows: list[int]) -> list[int]:
    """The same rows, the first ones far from one another: by the bits of their place, backwards."""
    bits = max(1, (len(rows) - 1).bit_length())
    order = sorted(range(len(rows)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [rows[place] for place in order]


def one_row_a_painting(table: QuestionTable, number: int, first: Sequence[int]) -> list[int]:
    """The rows `first`, and then one of each of so many other paintings, spread over the table."""
    seen = {int(table.painting_of_row[row]) for row in first}
    _, rows = np.unique(table.painting_of_row, return_index=True)
    others = [int(row) for painting, row in enumerate(rows) if painting not in seen]
    return [*first, *_spread(others)[: max(0, number - len(seen))]]


def _attention_together(session: Session, rows: Sequence[int], world: World) -> list[PaintingAttention]:
    """The rows' attention, in order, on every rank; each has computed its share."""
    own = world.together(lambda: attention_of(session.model, session.questions["val"], rows[world.rank :: world.size]))
    shares = world.gather(own)
    return [shares[place % world.size][place // world.size] for place in range(len(rows))]
