"""What the stages of both quickstarts have in common: how they are told and launched, and how an encoder is taught."""

import signal
import time
from pathlib import Path
from typing import Any

from artkv.errors import RunFailed, UserError
from artkv.heavy_imports import heavy_imports
from artkv.launching import launch


def say(what: str, began: float) -> None:
    """Tells on stdout what is done next, and how long all has taken. began: by `time.monotonic`."""
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"[{minutes}:{seconds:02d}] {what}", flush=True)


def launch_stage(verb: str, config_path: Path, ranks: int, *options: str) -> None:
    """Runs a verb in processes of its own; raises `RunFailed` if it fails, `Preempted` if this one is asked to stop."""
    code = launch(verb, ranks, "--config", str(config_path), *options)
    if code:
        raise RunFailed(f"{verb} ended with exit code {code}; its messages are above")


def check_gpus(ranks: int) -> None:
    """Raises `UserError` for more ranks than there are GPUs, where there are any."""
    if ranks > 1:
        import torch

        if torch.cuda.is_available() and ranks > (count := torch.cuda.device_count()):
            raise UserError(f"--ranks {ranks}: here are {count} GPUs, of which each rank takes one; give fewer ranks")


def cache_features(config_path: Path) -> None:
    """What `artkv cache` does for all splits, in this process."""
    with heavy_imports():
        from artkv.api import cache
        from artkv.config import load_config
        from artkv.config.dataset_schema import SPLITS
        from artkv.distributed import single_process

    cache(load_config(config_path), SPLITS, single_process())


def train_alone(config_path: Path) -> None:
    """What `artkv train --resume auto` does, in this process; `Preempted` where that is asked to stop."""
    with heavy_imports():
        from artkv.config import load_config
        from artkv.distributed import process_group
        from artkv.training.preemption import StopRequests
        from artkv.training.run import train

    config, stops = load_config(config_path), StopRequests()
    try:
        with process_group(config.distributed.timeout_minutes) as world:
            stops.listen(signal.SIGTERM, signal.SIGUSR1)
            train(config, "auto", world, stops)
    finally:
        stops.stop_listening()


def teach_encoder(lesson: Path, validation: Path, output_dir: Path, seed: int, **settings: Any) -> None:
    """Trains an art encoder from random weights on a world's small pictures, or goes on with that.

    lesson, validation: a folder for each class. settings: fields of `ArtEncoderSettings`; by default nothing makes the
    task harder, for which so short a training has no time.
    """
    with heavy_imports():
        from artkv.art_encoder.arguments import ArtEncoderSettings
        from artkv.art_encoder.training import train_art_encoder

    easy: dict[str, Any] = {
        "batch_size": 32, "weight_decay": 0.01, "ema_decay": 0.9, "smallest_crop": 1.0, "mixup": 0.0, "cutmix": 0.0,
        "drop_rate": 0.0, "drop_path_rate": 0.0, "color_jitter": 0.0, "workers": 0,
    }  # fmt: skip
    train_art_encoder(
        ArtEncoderSettings(
            data=lesson, validation=validation, output_dir=output_dir, resume=True, seed=seed, **{**easy, **settings}
        )
    )
