"""What a comparison shows, in words: a sentence for each question type, and tables for a terminal."""

from collections.abc import Mapping
from typing import TypeVar

from artkv.evaluation.answer_summary import ALL
from artkv.evaluation.comparison import POWER, Comparison, Difference, Differences
from artkv.evaluation.encoder_effects import encoder_verdicts, format_encoders
from artkv.evaluation.scores import Estimate, format_columns
from artkv.evaluation.seed_spread import Seeds

# What the prefix is held against, the strictest first, in words.
_BASELINES = {"control": "over the control", "off": "over its absence"}

T = TypeVar("T")


def verdict(comparison: Comparison, question_type: str | None = None) -> str:
    """One sentence on a question type, or on all questions together: what the prefix adds, and whether by facts.

    The control is what it adds to, or, without a control, the same model with the prefix off.
    """
    name = question_type or ALL
    if not comparison.has_prefix:
        return f"{name}: there is no prefix to judge, since this run was trained without one"
    differences = {
        against: of.overall if question_type is None else of.by_type[question_type]
        for against, of in comparison.against.items()
        if question_type is None or question_type in of.by_type
    }
    baseline = next((against for against in _BASELINES if against in differences), None)
    shuffled = differences.get("shuffled")
    if baseline is None:
        return f"{name}: neither the control nor the prefix off was evaluated; {_about_shuffled(shuffled, None)}"
    against, over = differences[baseline], _BASELINES[baseline]
    gain = _show(against.difference)
    if not against.is_significant:
        shown = f"no difference {over} is shown, {gain}; {_what_would_have_shown(against)}"
        if shuffled is not None and shuffled.is_significant:
            direction = "worse" if shuffled.difference.value > 0 else "better"
            shown += f"; with another painting's prefix it is {direction}, by {_show(shuffled.difference)}"
        return f"{name}: {shown}"
    if against.difference.value < 0:
        return f"{name}: the prefix costs {_show(against.difference, -1)} {over}"
    return f"{name}: the prefix adds {gain} {over}; {_about_shuffled(shuffled, against.difference.value)}"


def _about_shuffled(shuffled: Difference | None, gain: float | None) -> str:
    """What another painting's prefix does, where this painting's adds `gain`; None: nobody knows what it adds."""
    if shuffled is None:
        return "shuffled prefixes were not evaluated, so whether it carries facts of this painting is open"
    lost = shuffled.difference
    if not shuffled.is_significant or lost.value < 0:
        return f"shuffled prefixes do no worse ({_show(lost)}): no facts of this painting are shown"
    if gain is None or lost.high >= gain:
        alone = "another painting's prefix does worse" if gain is None else "shuffled prefixes do not"
        return f"{alone}: it carries facts of this painting"
    return f"shuffled prefixes add {gain - lost.value:.2f}: it carries facts of this painting, and adds without them"


def _what_would_have_shown(difference: Difference) -> str:
    if difference.detectable is None:
        return f"{difference.paintings} paintings are too few to show any"
    return f"one of {difference.detectable:.2f} would have been, in {POWER:.0%} of such sets"


def verdicts(comparison: Comparison) -> list[str]:
    """The verdict on each question type, on all questions together, and with several art encoders on each of them."""
    names = {name for differences in comparison.against.values() for name in differences.by_type}
    ordered = [name for name in comparison.answers if name in names]
    return [*(verdict(comparison, name) for name in ordered), verdict(comparison), *encoder_verdicts(comparison)]


def format_comparison(comparison: Comparison) -> str:
    """Tables for a terminal, the verdicts below; lines without a newline at the end."""
    parts = [_format_runs(comparison)]
    parts += [_format_differences(name, of) for name, of in comparison.against.items()]
    if encoders := format_encoders(comparison):
        parts.append(encoders)
    if comparison.seeds is not None:
        parts.append(_format_seeds(comparison.seeds))
    parts.append(_format_answers(comparison))
    parts.append("\n".join(verdicts(comparison)))
    return "\n\n".join(parts)


def _format_runs(comparison: Comparison) -> str:
    lines = [f"{comparison.metric} on {comparison.split}, prefix on, difference to each of these:"]
    return "\n".join([*lines, *(f"  {run.folder}: {run.taken_for}" for run in comparison.runs)])


def _format_differences(name: str, differences: Differences) -> str:
    header = ["against " + name, "questions", "paintings", "with", "without", "difference", "p", "p Holm"]
    rows = [[*header, "detectable", "wins", "losses"]]
    for kind, one in _with_all(differences.by_type, differences.overall):
        cells = [kind, str(one.questions), str(one.paintings), f"{one.with_value:.3f}", f"{one.without_value:.3f}"]
        cells += [_show(one.difference, digits=3), _number(one.p_value, 4), _number(one.p_holm, 4)]
        rows.append([*cells, _number(one.detectable, 3), str(one.wins), str(one.losses)])
    return format_columns(rows)


def _format_seeds(seeds: Seeds) -> str:
    runs, controls = len(seeds.training_seeds), len(seeds.control_seeds)
    title = f"over {runs} seed{'s' * (runs != 1)}" + (f", {controls} of the control" if controls else "")
    rows = [[title, "mean difference", "spread", "of each seed"]]
    for name, spreads in seeds.against.items():
        for kind, one in _with_all(spreads.by_type, spreads.overall):
            each = " ".join(f"{value:.3f}" for value in one.differences)
            mean = _show(Estimate(one.mean, one.low, one.high), digits=3)
            rows.append([f"{name}, {kind}", mean, _number(one.standard_deviation, 3), each])
    return "\n".join([format_columns(rows), *([f"note: {seeds.warning}"] if seeds.warning else [])])


def _format_answers(comparison: Comparison) -> str:
    rows = [["answers", "guessing scores", "the guess", "most frequent", "most confused"]]
    for kind, summary in comparison.answers.items():
        guess = summary.majority
        source = "" if guess.source == "train" else f", of {comparison.split}"
        frequent = summary.frequencies[0]
        worst = summary.worst_confusion()
        confused = "-" if worst is None else f"{_short(worst[0])} taken for {_short(worst[1])}, {worst[2]} times"
        often = f"{_short(frequent.answer)}, {frequent.asked} times"
        rows.append([kind, f"{guess.value:.3f}", f"{_short(guess.answer)}{source}", often, confused])
    return format_columns(rows)


def _with_all(by_type: Mapping[str, T], overall: T) -> list[tuple[str, T]]:
    return [*by_type.items(), (ALL, overall)]


def _show(estimate: Estimate, sign: int = 1, digits: int = 2) -> str:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    # A zero without a sign, whatever it was rounded from.
    value, low, high = (round(number, digits) + 0.0 for number in (sign * estimate.value, low, high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
