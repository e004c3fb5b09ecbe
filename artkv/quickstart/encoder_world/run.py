"""Runs the whole job on the world that tells encoders apart: encoders, features, a sweep, its table."""

import time
from pathlib import Path
from typing import Any

from artkv.errors import RunFailed
from artkv.quickstart.encoder_world.pictures import ENCODERS
from artkv.quickstart.encoder_world.report import report
from artkv.quickstart.encoder_world.settings import ARCHITECTURE, IMAGE_SIZE, EncoderQuickstart
from artkv.quickstart.encoder_world.world import make_encoder_world
from artkv.quickstart.stages import launch_stage, say, teach_encoder
from artkv.sweep.plan import read_sweep
from artkv.sweep.reporting import report_on
from artkv.sweep.running import check_folders, do_runs

# A small network, which needs a higher rate than the other quickstart's.
_OF_TRAINING: dict[str, Any] = {
    "architecture": ARCHITECTURE, "image_size": IMAGE_SIZE, "epochs": 4, "learning_rate": 5e-3,
}  # fmt: skip


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
    say("making the world: paintings, questions, a small BLIP-2", began)
    world = make_encoder_world(settings.world.folder, settings.seed)
    for encoder in ENCODERS:
        say(f"training the art encoder of {encoder}", began)
        lesson, validation = (world.lessons(encoder, split) for split in ("train", "val"))
        folder = settings.output_dir / "art_encoders" / encoder
        teach_encoder(lesson, validation, folder, settings.seed, **_OF_TRAINING)
    say("features of every encoder", began)
    launch_stage("cache", settings.config_path, 1)
    say("the sweep", began)
    sweep = read_sweep(settings.sweep_path)
    check_folders(sweep)
    failed = do_runs(sweep, sweep.runs, 1)
    _, paths = report_on(sweep)
    print(f"written: {', '.join(map(str, paths))}")
    if failed:
        raise RunFailed("; ".join(f"run {index}: {message}" for index, message in failed.items()))
    say("done", began)
    report(sweep)
