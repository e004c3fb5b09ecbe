"""Runs the whole job on the world that tells encoders apart: encoders, features, a sweep, its table."""

import time
from pathlib import Path

from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.training import train_art_encoder
from artkv.errors import RunFailed
from artkv.launching import launch
from artkv.quickstart.encoder_world.report import report
from artkv.quickstart.encoder_world.settings import ARCHITECTURE, IMAGE_SIZE, EncoderQuickstart
from artkv.quickstart.encoder_world.world import ENCODERS, EncoderWorld, make_encoder_world
from artkv.sweep.plan import read_sweep
from artkv.sweep.reporting import report_on
from artkv.sweep.running import check_folders, do_runs


def run_encoder_quickstart(output_dir: str | None, seed: int) -> None:
    """Makes the world, trains its two art encoders and sweeps over the six combinations.

    What is done is passed over. Raises `RunFailed` if a run fails, or the scores are not what the world was made
    to show.
    """
    settings = EncoderQuickstart(Path(output_dir or "outputs/quickstart_encoders"), seed)
    settings.check()
    began = time.monotonic()
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    settings.write_files()
    _say("making the world: paintings, questions, a small BLIP-2", began)
    world = make_encoder_world(settings.world.folder, settings.seed)
    for encoder in ENCODERS:
        _say(f"training the art encoder of {encoder}", began)
        train_encoder(world, encoder, settings.output_dir / "art_encoders" / encoder, settings.seed)
    _say("features of every encoder", began)
    if code := launch("cache", 1, "--config", str(settings.config_path)):
        raise RunFailed(f"cache ended with exit code {code}; its messages are above")
    _say("the sweep", began)
    sweep = read_sweep(settings.sweep_path)
    check_folders(sweep)
    failed = do_runs(sweep, sweep.runs, 1)
    _, paths = report_on(sweep)
    print(f"written: {', '.join(map(str, paths))}")
    if failed:
        raise RunFailed("; ".join(f"run {index}: {message}" for index, message in failed.items()))
    _say("done", began)
    report(sweep)


def _say(what: str, began: float) -> None:
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"[{minutes}:{seconds:02d}] {what}", flush=True)


def train_encoder(world: EncoderWorld, encoder: str, output_dir: Path, seed: int) -> None:
    """A small EfficientNet on pictures in one style, from random weights; it is blind to the other's channels."""
    settings = ArtEncoderSettings(
        data=world.lessons(encoder, "train"),
        validation=world.lessons(encoder, "val"),
        output_dir=output_dir,
        resume=True,
        seed=seed,
        architecture=ARCHITECTURE,
        image_size=IMAGE_SIZE,
        batch_size=32,
        epochs=10,
        learning_rate=5e-3,
        weight_decay=0.01,
        ema_decay=0.9,
        smallest_crop=1.0,
        mixup=0.0,
        cutmix=0.0,
        drop_rate=0.0,
        drop_path_rate=0.0,
        color_jitter=0.0,
        workers=0,
    )
    train_art_encoder(settings)
