"""What a comparison shows, in words: a sentence for each question type, and tables for a terminal."""

from collections.abc import Mapping
from typing import TypeVar

from artkv.evaluation.answer_summary import ALL
from artkv.evaluation.comparison import POWER, Comparison, Difference, Differences, Effect
from artkv.evaluation.encoder_effects import ONE_TRAINING, encoder_verdicts, format_encoders, of_first_alone
from artkv.evaluation.run_roles import BASELINES, CONTROL
from artkv.evaluation.scores import Estimate, format_columns
from artkv.evaluation.seed_spread import FEW_SEEDS, Seeds

_OVER = {CONTROL: "over the control", "off": "over its absence"}

T = TypeVar("T")


def verdict(comparison: Comparison, question_type: str | None = None) -> str:
    """One sentence on a question type, or on all questions together: what the prefix adds, and whether by facts.

    The control is what it adds to, or, without a control, the same model with the prefix off; over all seeds where
    several were compared. What it says of the control ends with how many trainings that rests on.
    """
    name = question_type or ALL
    if not comparison.has_prefix:
        return f"{name}: there is no prefix to judge, since this run was trained without one"
    baseline = next((base for base in BASELINES if comparison.effect(base, question_type) is not None), None)
    shuffled = comparison.effect("shuffled", question_type)
    against = None if baseline is None else comparison.effect(baseline, question_type)
    if baseline is None or against is None:
        facts = f"{_about_shuffled(shuffled)}{of_first_alone(shuffled)}"
        return f"{name}: neither the control nor the prefix off was evaluated; {facts}"
    over, trainings = _OVER[baseline], _trainings(comparison, baseline)
    gain = _show(against.estimate)
    if not against.is_shown:
        shown = f"no difference {over} is shown, {gain}{_what_would_have_shown(against.single)}"
        if shuffled is not None and shuffled.is_shown:
            direction = "worse" if shuffled.estimate.value > 0 else "better"
            alone = "" if against.is_of_first else of_first_alone(shuffled)
            shown += f"; with another painting's prefix it is {direction}, by {_show(shuffled.estimate)}{alone}"
        return f"{name}: {shown}{trainings}"
    if against.estimate.value < 0:
        return f"{name}: the prefix costs {_show(against.estimate, -1)} {over}{trainings}"
    added = comparison.effect_of_shuffled(baseline, question_type)
    facts = _about_shuffled(shuffled, added, prefix_adds=True)
    # Behind what the trainings say of the difference itself there is no need of it.
    facts += "" if against.is_of_first else of_first_alone(shuffled, added)
    return f"{name}: the prefix adds {gain} {over}; {facts}{trainings}"


def _trainings(comparison: Comparison, baseline: str) -> str:
    """How many trainings a verdict rests on; '' where it is of the single model that was trained."""
    seeds = comparison.seeds
    runs, controls = (1, 1) if seeds is None else (len(seeds.training_seeds), len(seeds.control_seeds))
    if baseline == CONTROL:
        if runs == controls == 1:
            return f" ({ONE_TRAINING})"
        lone = [what for what, number in (("run", runs), ("control", controls)) if number == 1]
        uncovered = f"; other seeds of the {lone[0]} are not covered" if lone else ""
        return f" ({_seeds(runs)}, {controls} of the control{uncovered}{_if_few(runs, controls)})"
    if seeds is None or runs == 1:
        return ""
    return f" ({_seeds(runs)}{_if_few(runs)})" if baseline in seeds.against else f" (the first of {_seeds(runs)} alone)"


def _if_few(*numbers: int) -> str:
    is_few = any(1 < number < FEW_SEEDS for number in numbers)
    return "; so few that the interval may be too narrow" if is_few else ""


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _about_shuffled(shuffled: Effect | None, added: Effect | None = None, prefix_adds: bool = False) -> str:
    """What another painting's prefix does, and by that whether the prefix carries facts of this one.

    added: what it adds to what this painting's was held against; None where that is unknown. prefix_adds: whether this
    painting's does.
    """
    if shuffled is None:
        return "shuffled prefixes were not evaluated, so whether it carries facts of this painting is open"
    lost = shuffled.estimate
    if not shuffled.is_shown or lost.value < 0:
        return f"shuffled prefixes do no worse ({_show(lost)}): no facts of this painting are shown"
    if not prefix_adds or added is None:
        return "another painting's prefix does worse: it carries facts of this painting"
    if added.is_shown and added.estimate.value > 0:
        return (
            f"shuffled prefixes add {_show(added.estimate)}: it carries facts of this painting, and adds without them"
        )
    return f"shuffled prefixes are not shown to ({_show(added.estimate)}): it carries facts of this painting"


def _what_would_have_shown(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.detectable is None:
        return f"; {difference.paintings} paintings are too few to show any"
    return f"; one of {difference.detectable:.2f} would have been, in {POWER:.0%} of such sets"


def verdicts(comparison: Comparison) -> list[str]:
    """The verdict on each question type, on all questions together, and with several art encoders on each of them."""
    names = {name for differences in comparison.against.values() for name in differences.by_type}
    ordered = [name for name in comparison.answers if name in names]
    return [*(verdict(comparison, name) for name in ordered), verdict(comparison), *encoder_verdicts(comparison)]


def format_comparison(comparison: Comparison) -> str:
    """Tables for a terminal, the verdicts below; lines without a newline at the end."""
    parts = [_format_runs(comparison)]
    parts += [_format_differences(f"against {name}", of) for name, of in comparison.against.items()]
    parts += [_format_differences(f"shuffled against {name}", of) for name, of in comparison.shuffled_over.items()]
    if encoders := format_encoders(comparison):
        parts.append(encoders)
    if comparison.seeds is not None:
        parts.append(_format_seeds(comparison.seeds))
    parts.append(_format_answers(comparison))
    parts.append("\n".join(verdicts(comparison)))
    return "\n\n".join(parts)


def _format_runs(comparison: Comparison) -> str:
    lines = [f"{comparison.metric} on {comparison.split}, prefix on, difference to each of these:"]
    lines += [f"  {run.folder}: {run.taken_for}" for run in comparison.runs]
    return "\n".join([*lines, *(f"note: {note}" for note in comparison.notes)])


def _format_differences(title: str, differences: Differences) -> str:
    header = [title, "questions", "paintings", "with", "without", "difference", "p", "p Holm"]
    rows = [[*header, "detectable", "wins", "losses"]]
    for kind, one in _with_all(differences.by_type, differences.overall):
        cells = [kind, str(one.questions), str(one.paintings), f"{one.with_value:.3f}", f"{one.without_value:.3f}"]
        cells += [_show(one.difference, digits=3), _number(one.p_value, 4), _number(one.p_holm, 4)]
        rows.append([*cells, _number(one.detectable, 3), str(one.wins), str(one.losses)])
    return format_columns(rows)


def _format_seeds(seeds: Seeds) -> str:
    runs, controls = len(seeds.training_seeds), len(seeds.control_seeds)
    title = f"over {_seeds(runs)}" + (f", {controls} of the control" if controls else "")
    rows = [[title, "mean difference", "spread", "of each seed"]]
    shuffled = {f"shuffled over {name}": spreads for name, spreads in seeds.shuffled_over.items()}
    for name, spreads in (seeds.against | shuffled).items():
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
