"""Runs the whole job on the embedded world: art encoder, features, training, evaluation, control, table, report."""

import time
from dataclasses import replace

import torch

from artkv.api import evaluate
from artkv.config import load_config
from artkv.evaluation.answering import ALL_ABLATIONS, AS_TRAINED
from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.run_roles import open_run
from artkv.evaluation.scores import Scores
from artkv.quickstart.report import report, write_scores
from artkv.quickstart.settings import QuickstartSettings
from artkv.quickstart.stages import launch_stage, say, teach_encoder
from artkv.quickstart.world import make_world
from artkv.report.writing import ReportSettings, write_report


def run_quickstart(settings: QuickstartSettings) -> dict[str, Scores]:
    """Makes the world of `settings.seed` and does the whole job on it; returns the scores.

    Each stage that is already done is passed over, so an interrupted quickstart can be repeated. Raises
    `RunFailed` if the scores are not those that the world was made to show.
    """
    began = time.monotonic()
    if torch.cuda.is_available():
        settings = replace(settings, ranks=min(settings.ranks, torch.cuda.device_count()))
        settings.check()  # of fewer ranks than were asked for
    say("making the world: paintings, questions, a small BLIP-2", began)
    world = make_world(settings.world.folder, settings.seed)
    say("training the art encoder", began)
    # The recipe's efficientnet.image_size; smaller loses the brushwork.
    lesson = {"image_size": 80, "epochs": 8, "learning_rate": 3e-3}
    teach_encoder(world.wikiart, world.wikiart_val, settings.art_encoder, settings.seed, **lesson)
    scores: dict[str, Scores] = {}
    for is_modulated in (True, False):
        say("features, and training with the prefix" if is_modulated else "training the control", began)
        config_path = settings.write_config(is_modulated)
        if is_modulated:
            launch_stage("cache", config_path, settings.ranks)
        launch_stage("train", config_path, settings.ranks, "--resume", "auto")
        say("answering the test questions", began)
        ablations = ALL_ABLATIONS if is_modulated else (AS_TRAINED,)
        best = settings.run_dir(is_modulated) / "best"
        results = evaluate(best, "test", ablations, load_config(config_path))
        scores |= results if is_modulated else {"control": results[AS_TRAINED.name]}
    say("writing the report", began)
    run, control = settings.run_dir(True), settings.run_dir(False)
    compare_runs([open_run(run), open_run(control)], "test", "exact_match")
    write_report(ReportSettings(run, [control]))
    write_scores(settings, scores)
    say("done", began)
    report(settings, scores)
    return scores
