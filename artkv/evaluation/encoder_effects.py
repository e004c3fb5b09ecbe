"""What each of several art encoders is worth, asked in two ways: by masking it, and by training without it.

Masking says what the trained model reads of an encoder, on which it has come to rely; training without it says whether
the others can stand in for it. Of two encoders that tell the same, each may be missed in the first way and neither in
the second. (Investigating Redundancy in Multimodal Large Language Models with Multiple Vision Encoders, 2025,
arXiv:2507.03262.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artkv.evaluation.answer_summary import ALL
from artkv.evaluation.comparison import Comparison, Difference, Effect
from artkv.evaluation.run_roles import masked_name, without_name
from artkv.evaluation.scores import Estimate, format_columns

TWO_QUESTIONS = (
    "masking asks what the trained model reads of an encoder, retraining whether a model can do without it, so the two "
    "can rank encoders differently"
)

# What is said where a run is held against one that was trained otherwise, and neither has other seeds.
ONE_TRAINING = "one training of each; other seeds are not covered"
_OF_FIRST = " (of the first seed alone)"


@dataclass(frozen=True)
class EncoderEffect:
    """What one encoder adds on a group of questions, each None where it was not evaluated.

    off, shuffled: its marginal contribution, the prefix on less its part off, or of another painting. without: its
    necessity, the prefix on less a model that was trained without it. question_type: `all` of all together.
    """

    encoder: str
    question_type: str
    off: Difference | None
    shuffled: Difference | None
    without: Difference | None


def encoder_effects(comparison: Comparison) -> list[EncoderEffect]:
    """Of each encoder those on each question type, in the order of the answers, and on all; empty with one encoder."""
    effects = []
    for encoder in comparison.encoders:
        names = (masked_name(encoder, "off"), masked_name(encoder, "shuffled"), without_name([encoder]))
        found = [comparison.against.get(name) for name in names]
        types = dict.fromkeys(kind for one in found if one is not None for kind in one.by_type)
        for kind in types:
            of_kind = [None if one is None else one.by_type.get(kind) for one in found]
            effects.append(EncoderEffect(encoder, kind, *of_kind))
        if any(one is not None for one in found):
            effects.append(EncoderEffect(encoder, ALL, *(None if one is None else one.overall for one in found)))
    return effects


def encoder_verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each encoder, on all questions together, and one on how the two ways rank them.

    Over all seeds where several were compared. Ranks are of the differences as they were found, and are given where two
    encoders or more have both.
    """
    sentences, masking, retraining = [], {}, {}
    for encoder in comparison.encoders:
        names = (masked_name(encoder, "off"), masked_name(encoder, "shuffled"), without_name([encoder]))
        off, shuffled, without = (comparison.effect(name) for name in names)
        if off is None and shuffled is None and without is None:
            continue
        sentences.append(f"encoder {encoder}: {_sentence(off, shuffled, without)}")
        if off is not None and without is not None:
            masking[encoder], retraining[encoder] = off.estimate.value, without.estimate.value
    if len(masking) > 1:
        by_masking, by_retraining = _ranks(masking), _ranks(retraining)
        ranked = (
            f"both rank them {by_masking}"
            if by_masking == by_retraining
            else f"{by_masking} by masking, {by_retraining} by retraining"
        )
        sentences.append(f"encoders: {ranked}; {TWO_QUESTIONS}")
    return sentences


def format_encoders(comparison: Comparison) -> str:
    """A table for a terminal: a row for each encoder and question type; '' with one encoder."""
    effects = encoder_effects(comparison)
    if not effects:
        return ""
    rows = [["encoder", "questions", "on - off", "p", "on - shuffled", "p", "on - trained without", "p"]]
    for effect in effects:
        cells = [cell for one in (effect.off, effect.shuffled, effect.without) for cell in _cells(one)]
        rows.append([effect.encoder, effect.question_type, *cells])
    return f"{format_columns(rows)}\np of a question type is corrected for their number, by Holm; {TWO_QUESTIONS}"


def p_of(one: Difference) -> float:
    """Corrected for the number of question types where it is of one of them."""
    return one.p_value if one.p_holm is None else one.p_holm


def of_first_alone(*effects: Effect | None) -> str:
    """What is said behind a clause that rests on an effect of the first of several seeds; '' where none is."""
    return _OF_FIRST if any(one is not None and one.is_of_first for one in effects) else ""


def _cells(one: Difference | None) -> tuple[str, str]:
    return ("-", "-") if one is None else (_show(one.difference, 3), f"{p_of(one):.4f}")


def _sentence(off: Effect | None, shuffled: Effect | None, without: Effect | None) -> str:
    parts = [
        _part("with its part off", off),
        _part("with another painting's features", shuffled),
        _part("trained without it", without),
    ]
    if without is None:
        parts.append("whether a model trained without it does worse is open, since none was compared")
    elif without.single is not None:
        parts[-1] += f" ({ONE_TRAINING})"
    return "; ".join(part for part in parts if part)


def _part(what: str, one: Effect | None) -> str:
    if one is None:
        return ""
    if not one.is_shown:
        return f"{what}, no difference is shown, {_show(one.estimate, 2)}{of_first_alone(one)}"
    found = one.estimate
    sign = 1 if found.value > 0 else -1
    estimate = Estimate(abs(found.value), *sorted((sign * found.low, sign * found.high)))
    direction = "worse" if sign > 0 else "better"
    return f"{what}, the model is {direction} by {_show(estimate, 2)}{of_first_alone(one)}"


def _ranks(of: Mapping[str, float]) -> str:
    """Names by their differences, the largest first; equal ones, as questions are whole numbers, with = between."""
    groups: dict[float, list[str]] = {}
    for name, value in of.items():
        groups.setdefault(round(value, 9), []).append(name)
    ordered: Sequence[list[str]] = [groups[value] for value in sorted(groups, reverse=True)]
    return " > ".join(" = ".join(names) for names in ordered)


def _show(estimate: Estimate, digits: int) -> str:
    # A zero without a sign, whatever it was rounded from.
    value, low, high = (round(number, digits) + 0.0 for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
