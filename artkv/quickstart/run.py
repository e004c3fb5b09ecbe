"""Runs the whole job on the embedded world: art encoder, features, training, evaluation, control, table, report."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from artkv.api import evaluate
from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.training import train_art_encoder
from artkv.config import load_config
from artkv.errors import RunFailed
from artkv.evaluation.answering import ALL_ABLATIONS, AS_TRAINED
from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.run_roles import open_run
from artkv.evaluation.scores import Scores
from artkv.launching import launch
from artkv.quickstart.report import report, write_scores
from artkv.quickstart.settings import PaintedWorld, QuickstartSettings
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
    _say("making the world: paintings, questions, a small BLIP-2", began)
    world = make_world(settings.world.folder, settings.seed)
    _say("training the art encoder", began)
    _train_art_encoder(world, settings.art_encoder, settings.seed)
    scores: dict[str, Scores] = {}
    for is_modulated in (True, False):
        _say("features, and training with the prefix" if is_modulated else "training the control", began)
        config_path = settings.write_config(is_modulated)
        if is_modulated:
            _launch("cache", config_path, settings.ranks)
        _launch("train", config_path, settings.ranks, "--resume", "auto")
        _say("answering the test questions", began)
        ablations = ALL_ABLATIONS if is_modulated else (AS_TRAINED,)
        best = settings.run_dir(is_modulated) / "best"
        results = evaluate(best, "test", ablations, load_config(config_path))
        scores |= results if is_modulated else {"control": results[AS_TRAINED.name]}
    _say("writing the report", began)
    run, control = settings.run_dir(True), settings.run_dir(False)
    compare_runs([open_run(run), open_run(control)], "test", "exact_match")
    write_report(ReportSettings(run, [control]))
    write_scores(settings, scores)
    _say("done", began)
    report(settings, scores)
    return scores


def _say(what: str, began: float) -> None:
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"[{minutes}:{seconds:02d}] {what}", flush=True)


def _train_art_encoder(world: PaintedWorld, output_dir: Path, seed: int) -> None:
    """EfficientNet-B3 on the world's styles, from random weights."""
    settings = ArtEncoderSettings(
        data=world.wikiart,
        validation=world.wikiart_val,
        output_dir=output_dir,
        resume=True,
        seed=seed,
        image_size=80,  # the recipe's efficientnet.image_size; smaller loses the brushwork
        batch_size=32,
        epochs=8,
        learning_rate=3e-3,
        weight_decay=0.01,
        ema_decay=0.9,
        smallest_crop=1.0,
        # Eight epochs are too few for anything that makes the task harder.
        mixup=0.0,
        cutmix=0.0,
        drop_rate=0.0,
        drop_path_rate=0.0,
        color_jitter=0.0,
        workers=0,
    )
    train_art_encoder(settings)


def _launch(verb: str, config_path: Path, ranks: int, *options: str) -> None:
    code = launch(verb, ranks, "--config", str(config_path), *options)
    if code:
        raise RunFailed(f"{verb} ended with exit code {code}; its messages are above")
