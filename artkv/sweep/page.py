"""A sweep's results as one HTML file."""

import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from markupsafe import Markup

from artkv import __version__
from artkv.report.page import page_environment, style_and_hash
from artkv.report.plots import Interval, interval_plot
from artkv.sweep.naming import told_settings
from artkv.sweep.plan import Sweep, SweepRun
from artkv.sweep.results import SettingResult, gain_tables, intervals, notes, question_types, score_table

_FOLDER = Path(__file__).parent


def render(sweep: Sweep, results: Sequence[SettingResult], missing: Sequence[SweepRun]) -> str:
    """The page's HTML: the tables that the terminal shows, and a plot of the scores."""
    style, style_hash = style_and_hash()
    types = question_types(results)
    tables = [
        {
            "title": "Exact match",
            "text": f"Of {sweep.split} questions, by type: mean over seeds, and their standard deviation.",
            "rows": score_table(results, types),
        }
    ]
    for other, rows in gain_tables(results, types).items():
        title = f"What the prefix adds: on - {other}"
        text = f"{intervals(results).capitalize()}."
        tables.append({"title": title, "text": text, "rows": [["setting", *types], *rows]})
    seeds = sum(len(result.seeds) for result in results)
    return page_environment(_FOLDER).get_template("page.html.jinja").render(
        style=style, style_hash=style_hash, version=__version__,
        title=sweep.path.stem,
        lead=f"{len(results)} settings, {seeds} runs of {len(sweep.runs)} done.",
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        tables=tables,
        plot=_plot(results, types),
        by=", ".join(dict.fromkeys(key for result in results for key in result.settings)) or "setting",
        notes=notes(results),
        missing=[run.name for run in missing],
    )  # fmt: skip


def _plot(results: Sequence[SettingResult], types: Sequence[str]) -> Markup:
    groups = [(name, [_interval(result.values(name)) for result in results]) for name in types]
    title = "Exact match by question type and setting"
    keys = list(results[0].settings)
    columns = [result.name for result in results]
    if keys and all(list(result.settings) == keys for result in results):  # values alone: names would be cut short
        title = f"Exact match by question type and {', '.join(keys)}"
        columns = [", ".join(told_settings(result.settings).values()) for result in results]
    return interval_plot(title, columns, groups)


def _interval(values: Sequence[float]) -> Interval | None:
    if not values:
        return None
    mean, low, high = statistics.mean(values), min(values), max(values)
    return Interval(mean, low, high, f"{mean:.3f}, of {len(values)} seeds from {low:.3f} to {high:.3f}")
