"""Runs the whole job on the embedded world: art encoder, features, training, evaluation, control, table, report.

Light to import: what takes seconds is imported by the processes that do the work.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artkv.evaluation.scores import Scores
from artkv.heavy_imports import heavy_imports
from artkv.quickstart.claiming import claim
from artkv.quickstart.lanes import results, two_lanes
from artkv.quickstart.report import report, write_scores
from artkv.quickstart.settings import QuickstartSettings
from artkv.quickstart.stages import (
    cache_features,
    check_gpus,
    launch_stage,
    say,
    teach_encoder,
    train_alone,
)

# Half of it is enough to tell the styles of all validation pictures, with seeds 1337, 7 and 21 of the training.
_LESSON: Mapping[str, Any] = {"epochs": 5, "learning_rate": 5e-3, "batch_size": 24}


def run_quickstart(settings: QuickstartSettings) -> dict[str, Scores]:
    """Makes the world of `settings.seed` and does the whole job on it; returns the scores.

    Two processes share the work: the second makes the small BLIP-2 while the first teaches the art encoder, and trains
    the control beside the run. Each stage that is already done is passed over, so an interrupted quickstart can be
    repeated. Raises `RunFailed` if the scores are not those that the world was made to show.
    """
    began = time.monotonic()
    check_gpus(settings.ranks)
    claim(settings.world.folder, settings.seed)
    with two_lanes(settings.output_dir / "beside.log") as (first, second):
        say("making the world: paintings, questions and an art encoder; beside them a small BLIP-2", began)
        first.begin("paintings and art encoder", _paint_and_teach, settings)
        second.begin("the small BLIP-2", _make_blip2, settings)
        results(first, second)
        say("features of all paintings", began)
        for is_modulated in (True, False):
            settings.write_config(is_modulated)
        first.begin("features", _cache, settings)
        results(first)
        say("training with the prefix, and the control; answering the test questions", began)
        first.begin("the run with the prefix", _train_and_answer, settings, True)
        if settings.ranks > 1:  # whose ranks have the cores for themselves
            results(first)
        second.begin("the control", _train_and_answer, settings, False)
        run, control = results(first, second)
        scores: dict[str, Scores] = run | {"control": next(iter(control.values()))}
        say("writing the report", began)
        first.begin("the report", _write_report, settings)
        results(first)
    write_scores(settings, scores)
    say("done", began)
    report(settings, scores)
    return scores


def _paint_and_teach(settings: QuickstartSettings) -> None:
    with heavy_imports():
        from artkv.quickstart.world import make_paintings

    world = make_paintings(settings.world.folder, settings.seed)
    lesson = {"architecture": settings.network.architecture, "image_size": settings.network.image_size, **_LESSON}
    teach_encoder(world.wikiart, world.wikiart_val, settings.art_encoder, settings.seed, **lesson)


def _make_blip2(settings: QuickstartSettings) -> None:
    with heavy_imports():
        from artkv.quickstart.world import make_models

    make_models(settings.world.folder, settings.seed)


def _cache(settings: QuickstartSettings) -> None:
    config_path = settings.config_path(True)
    if settings.ranks > 1:
        launch_stage("cache", config_path, settings.ranks)
    else:
        cache_features(config_path)


def _train_and_answer(settings: QuickstartSettings, is_modulated: bool) -> dict[str, Scores]:
    """The scores of the run with the prefix under all ablations, or of the control."""
    config_path = settings.config_path(is_modulated)
    if settings.ranks > 1:
        launch_stage("train", config_path, settings.ranks, "--resume", "auto")
    else:
        train_alone(config_path)

    with heavy_imports():
        from artkv.api import evaluate
        from artkv.config import load_config
        from artkv.evaluation.answering import ALL_ABLATIONS, AS_TRAINED

    ablations = ALL_ABLATIONS if is_modulated else (AS_TRAINED,)
    best: Path = settings.run_dir(is_modulated) / "best"
    return evaluate(best, "test", ablations, load_config(config_path))


def _write_report(settings: QuickstartSettings) -> None:
    from artkv.evaluation.compared_runs import compare_runs
    from artkv.evaluation.run_roles import open_run
    from artkv.report.writing import ReportSettings, write_report

    run, control = settings.run_dir(True), settings.run_dir(False)
    compare_runs([open_run(run), open_run(control)], "test", "exact_match")
    write_report(ReportSettings(run, [control]))
