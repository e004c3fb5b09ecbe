"""What a sweep has found: scores and gains of each setting over its seeds, as tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artkv.errors import UserError
from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.comparison import Comparison
from artkv.evaluation.results import METRICS_FILE, evaluation_folder, is_selection_note, read_scores
from artkv.evaluation.run_roles import (
    ABLATIONS,
    CONTROL,
    WITHOUT,
    Run,
    ablations_of,
    all_settings,
    differing_settings,
    is_as_meant,
    lacked_encoders,
    masked_names,
)
from artkv.evaluation.scores import Scores, format_columns
from artkv.sweep.naming import told_settings
from artkv.sweep.plan import SEED, Sweep, SweepRun
from artkv.sweep.running import is_answered

ALL = "all"
METRIC = "exact_match"
_NOTHING = "-"
_CHOSEN = "checkpoints are the best of their runs on val, so their scores there are too good; report those on test"


@dataclass(frozen=True)
class SettingResult:
    """A setting's runs, one a seed.

    scores: of each run, by the ablation's name. comparison: of the first with its ablations, the controls that differ
    from it in the prefix alone, those without some of its art encoders, and over the seeds; None where a control has
    nothing to be compared with.
    """

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    scores: tuple[Mapping[str, Scores], ...]
    comparison: Comparison | None

    def values(self, question_type: str) -> list[float]:
        """Exact match of each run as it was trained, of a type or of all; empty where a type is unknown."""
        found = []
        for scores in self.scores:
            on = scores["on"]
            group = on.overall if question_type == ALL else on.by_type.get(question_type)
            found += [] if group is None else [group.exact_match.value]
        return found

    def gain(self, other: str, question_type: str) -> tuple[float, float, float] | None:
        """(mean, low, high) of what the prefix adds to `other`, over seeds if there are several.

        None where not all seeds were held against it: the first alone, or some, would say nothing of the rest.
        """
        compared = self.comparison
        if compared is None or (compared.seeds is not None and other not in compared.seeds.against):
            return None
        covered = () if compared.seeds is None else compared.seeds.training_seeds
        if len(self.seeds) > 1 and not set(self.seeds) <= set(covered):
            return None
        effect = compared.effect(other, None if question_type == ALL else question_type)
        if effect is None:
            return None
        return effect.estimate.value, effect.estimate.low, effect.estimate.high


def read_results(sweep: Sweep) -> tuple[list[SettingResult], list[SweepRun]]:
    """What the answered runs found, by setting, and the runs that are not answered yet.

    Writes each setting's `comparison.json`. `UserError` if no run is answered.
    """
    missing = [run for run in sweep.runs if not is_answered(sweep, run)]
    left_out = {run.index for run in missing}
    groups = [group for all_of in sweep.groups() if (group := [run for run in all_of if run.index not in left_out])]
    if not groups:
        raise UserError(
            f"sweep {sweep.path}: none of its {len(sweep.runs)} runs is done yet; start it without --report"
        )
    runs = [_open(run) for group in groups for run in group]
    return [_result(sweep, group, runs) for group in groups], missing


def question_types(results: Sequence[SettingResult]) -> list[str]:
    """Of all settings, in the order of scores; `all` last."""
    return [*dict.fromkeys(t for result in results for s in result.scores for t in s["on"].by_type), ALL]


def format_results(results: Sequence[SettingResult], missing: Sequence[SweepRun]) -> str:
    """Tables for a terminal: exact match over seeds, and what the prefix adds."""
    types = question_types(results)
    lines = [format_columns(score_table(results, types)), ""]
    for other, rows in gain_tables(results, types).items():
        lines += [format_columns([[f"on - {other}", *types], *rows]), ""]
    lines += ["; ".join(filter(None, ("mean over seeds and their standard deviation", intervals(results))))]
    lines += [f"note: {note}" for note in notes(results)]
    if missing:
        lines.append(f"not done yet: {', '.join(f'{run.index} ({run.name})' for run in missing)}")
    return "\n".join(lines)


def intervals(results: Sequence[SettingResult]) -> str:
    """What the intervals of differences cover; '' where nothing was compared."""
    over_seeds = [result.comparison.seeds is not None for result in results if result.comparison is not None]
    if not over_seeds:
        return ""
    covered = "over paintings and seeds" if all(over_seeds) else "over paintings; one seed says nothing of other seeds"
    if any(over_seeds) and not all(over_seeds):
        covered = "over paintings, and over seeds where a setting has several"
    return f"differences with 95% intervals, {covered}"


def notes(results: Sequence[SettingResult]) -> list[str]:
    """What is to be kept in mind of the comparisons, each once, with the settings that it is of."""
    of_settings: dict[str, list[str]] = {}
    roles: dict[str, None] = {}
    for result in results:
        if result.comparison is None:
            continue
        seeds = result.comparison.seeds
        for note in (*((seeds.warning,) if seeds is not None and seeds.warning else ()), *result.comparison.notes):
            of_settings.setdefault(_CHOSEN if is_selection_note(note) else note, []).append(result.name)
        roles |= {f"{run.folder}: {run.taken_for}": None for run in result.comparison.runs if not is_as_meant(run)}
    told = [note if note == _CHOSEN else f"{'; '.join(names)}: {note}" for note, names in of_settings.items()]
    return [*told, *roles]


def score_table(results: Sequence[SettingResult], types: Sequence[str]) -> list[list[str]]:
    """A header, and for each setting its number of seeds and its exact match of each type."""
    rows = [[result.name, str(len(result.seeds)), *(_mean(result.values(t)) for t in types)] for result in results]
    return [[METRIC, "seeds", *types], *rows]


def gain_tables(results: Sequence[SettingResult], types: Sequence[str]) -> dict[str, list[list[str]]]:
    """By what the prefix is compared with, and only where it is: for each setting what it adds in each type."""
    tables = {}
    compared = [name for result in results if result.comparison for name in result.comparison.against]
    own = [name for result in results if result.comparison for name in masked_names(result.comparison.encoders)]
    # Others are seeds that came out as other trainings, of which the notes tell.
    retrained = [name for name in compared if name.startswith(WITHOUT)]
    for other in dict.fromkeys((*ABLATIONS, *own, CONTROL, *retrained)):
        rows = [[result.name, *(_gain(result.gain(other, t)) for t in types)] for result in results]
        if any(cell != _NOTHING for row in rows for cell in row[1:]):
            tables[other] = rows
    return tables


def _result(sweep: Sweep, group: Sequence[SweepRun], others: Sequence[Run]) -> SettingResult:
    first = group[0]
    runs = [_open(run) for run in group]
    own = ablations_of(runs[0].config).values()
    scores = tuple({name: s for name in ("on", *own) if (s := _scores(sweep, run, name))} for run in group)
    comparison = None
    if runs[0].has_prefix:
        comparison, _ = compare_runs([*runs, *_strict(runs[0], others)], sweep.split, METRIC)
    told = told_settings(first.setting)
    name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in told.items()) or "as configured"
    return SettingResult(name, first.setting, tuple(run.seed for run in runs), scores, comparison)


def _strict(run: Run, others: Sequence[Run]) -> list[Run]:
    """Controls that differ in prefix, art encoders and seed alone, and runs that lack some of its encoders.

    Their answers may be as long: others are not compared.
    One of each seed: where a sweep goes over what is of no use to them, or makes no other training of them, that whose
    settings are most like the run's.
    """
    free = ("kv_modulation.", "efficientnet", "art_encoders", SEED)
    found: dict[tuple[tuple[str, ...], int], list[Run]] = {}
    for other in others:
        lacked = lacked_encoders(run.config, other.config)
        is_control = not other.has_prefix and all(
            key.startswith(free) for key in differing_settings(run.config, other.config)
        )
        is_as_long = other.config.evaluation.max_new_tokens == run.config.evaluation.max_new_tokens
        if is_as_long and (lacked or is_control):
            found.setdefault((lacked, other.seed), []).append(other)
    return [min(alike, key=lambda other: _unlike(run, other)) for alike in found.values()]


def _unlike(run: Run, other: Run) -> int:
    """How many settings two runs do not share."""
    others = all_settings(other.config)
    return sum(value != others.get(key) for key, value in all_settings(run.config).items())


def _open(run: SweepRun) -> Run:
    return Run(run.folder, run.config)


def _scores(sweep: Sweep, run: SweepRun, ablation: str) -> Scores | None:
    folder = evaluation_folder(run.folder, sweep.split, ablation)
    return read_scores(folder) if (folder / METRICS_FILE).is_file() else None


def _mean(values: Sequence[float]) -> str:
    if not values:
        return _NOTHING
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _gain(gain: tuple[float, float, float] | None) -> str:
    return _NOTHING if gain is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
