"""Runs the whole job on the embedded world: art encoder, features, training, evaluation, control, table."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from artkv.api import evaluate
from artkv.art_encoder.arguments import ArtEncoderSettings
from artkv.art_encoder.training import train_art_encoder
from artkv.config import Config, dump_config, load_config, recipe_path
from artkv.distributed import single_process
from artkv.errors import RunFailed, UserError
from artkv.evaluation.answering import ALL_ABLATIONS, AS_TRAINED
from artkv.evaluation.scores import Estimate, Scores, format_table
from artkv.quickstart.paintings import STYLES
from artkv.quickstart.world import World, make_world

# What a run of the world shows when everything works.
_LEAST_EXACT_MATCH = 0.9
_CHANCE = 1 / len(STYLES)

_QUESTIONS_A_STEP = 32


def run_quickstart(output_dir: Path, seed: int, ranks: int, overrides: Sequence[str] = ()) -> dict[str, Scores]:
    """Makes the world of `seed` in `output_dir/world` and does the whole job on it; returns the scores.

    output_dir itself becomes the run's folder; the control, trained as long without a prefix, is in
    `output_dir/control`. Each stage that is already done is passed over, so an interrupted quickstart can
    be repeated. Raises `RunFailed` if the scores are not those that the world was made to show.
    """
    began = time.monotonic()
    if torch.cuda.is_available():
        ranks = min(ranks, torch.cuda.device_count())
    if _QUESTIONS_A_STEP % ranks:
        raise UserError(f"--ranks {ranks}: a step's {_QUESTIONS_A_STEP} questions cannot be shared; give 1, 2 or 4")
    _say("making the world: paintings, questions, a small BLIP-2", began)
    world = make_world(output_dir / "world", seed)
    _say("training the art encoder", began)
    encoder = _train_art_encoder(world, output_dir / "art_encoder", seed)
    scores: dict[str, Scores] = {}
    for name, run_dir, is_modulated in (("", output_dir, True), ("control", output_dir / "control", False)):
        _say(f"{'features, and training with the prefix' if is_modulated else 'training the control'}", began)
        config_path = _write_config(
            world, encoder, run_dir, output_dir / "features", seed, ranks, is_modulated, overrides
        )
        if is_modulated:
            _launch("cache", config_path, ranks)
        _launch("train", config_path, ranks, "--resume", "auto")
        _say("answering the test questions", began)
        ablations = ALL_ABLATIONS if is_modulated else (AS_TRAINED,)
        results = evaluate(load_config(config_path), run_dir / "best", "test", ablations, single_process())
        scores |= {name or ablation: result for ablation, result in results.items()}
    table = format_table(scores)
    (output_dir / "table.txt").write_text(f"{table}\n", encoding="utf-8")
    (output_dir / "scores.json").write_text(
        json.dumps({name: result.to_json() for name, result in scores.items()}, indent=2), encoding="utf-8"
    )
    _say("done", began)
    print(f"\nTest questions about paintings that no training saw, seed {seed}; chance at style is {_CHANCE:.3f}:\n")
    print(table)
    print(f"\nTry: artkv ask --checkpoint {output_dir} IMAGE QUESTION, or tensorboard --logdir {output_dir}")
    if surprises := find_surprises(scores):
        raise RunFailed("the scores are not what this world was made to show: " + "; ".join(surprises))
    return scores


def find_surprises(scores: dict[str, Scores]) -> list[str]:
    """What is not as it should be; empty if the prefix, and the prefix alone, tells the styles."""
    surprises = []
    for name in ("on", "control"):
        kinds = ("style", "colour") if name == "on" else ("colour",)
        for kind in kinds:
            estimate = scores[name].by_type[kind].exact_match
            if estimate.value < _LEAST_EXACT_MATCH:
                surprises.append(f"{kind} with {name} is {_show(estimate)}, expected at least {_LEAST_EXACT_MATCH}")
    for name in ("off", "shuffled", "control"):
        estimate = scores[name].by_type["style"].exact_match
        if not estimate.low <= _CHANCE <= estimate.high:
            surprises.append(f"style with {name} is {_show(estimate)}, expected chance, {_CHANCE:.3f}")
    return surprises


def _show(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _say(what: str, began: float) -> None:
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"[{minutes}:{seconds:02d}] {what}", flush=True)


def _train_art_encoder(world: World, output_dir: Path, seed: int) -> Path:
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
    return train_art_encoder(settings).checkpoint


def _write_config(
    world: World,
    encoder: Path,
    run_dir: Path,
    features: Path,
    seed: int,
    ranks: int,
    is_modulated: bool,
    overrides: Sequence[str],
) -> Path:
    """The recipe with this world's paths, in a file of its own, so that any command can be tried on it."""
    settings = {
        "model.blip2": world.blip2,
        "efficientnet.checkpoint": encoder,
        "dataset.train": world.train_csv,
        "dataset.val": world.val_csv,
        "dataset.test": world.test_csv,
        "dataset.image_root": world.image_root,
        "training.seed": seed,
        "kv_modulation.enabled": str(is_modulated).lower(),
        "run.output_dir": run_dir,
        "frozen.feature_cache": features,
        # The same 32 questions a step, however many share them.
        "training.batch_size": _QUESTIONS_A_STEP // max(ranks, 2),
        "training.gradient_accumulation_steps": 2 if ranks == 1 else 1,
    }
    pairs = [f"{key}={json.dumps(str(value)) if isinstance(value, Path) else value}" for key, value in settings.items()]
    config: Config = load_config(recipe_path("quickstart.yaml"), [*overrides, *pairs])
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "quickstart.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return path


def _launch(verb: str, config_path: Path, ranks: int, *options: str) -> None:
    """`deepspeed --num_accelerators RANKS --module artkv VERB`, as on any machine."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    command = ["--module", "artkv", verb, "--config", str(config_path), *options]
    # The launcher reports several lines a rank, and warns that there is no hostfile: not here.
    result = subprocess.run([*launcher, "--log_level", "error", *command], check=False)
    if result.returncode:
        raise RunFailed(f"{verb} ended with exit code {result.returncode}; its messages are above")
