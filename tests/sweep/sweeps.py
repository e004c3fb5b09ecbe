"""Sweeps whose runs are written by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from artkv.config import dump_config
from artkv.run_folder.checkpoint import write_checkpoint
from artkv.run_folder.state import Identity, Progress, TrainableState
from artkv.sweep.plan import Sweep, SweepRun, read_sweep
from tests.evaluation.evaluations import answers_to, make_table, write_evaluation

GRID = "{kv_modulation.num_prefix_tokens: [0, 4], training.seed: [1, 2, 3]}"
CHECKPOINT = "step_00000081"


def make_sweep(tmp_path: Path, grid: str) -> Sweep:
    (tmp_path / "blip2").mkdir(exist_ok=True)
    (tmp_path / "base.yaml").write_text("model: {blip2: blip2}\ntraining:\n  num_epochs: 2\n", encoding="utf-8")
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: base.yaml\noutput_dir: {tmp_path}/runs\nsplit: test\ngrid: {grid}\n", encoding="utf-8")
    return read_sweep(path)


def finish_training(run: SweepRun, state: str = "finished") -> None:
    checkpoints = run.folder / "checkpoints"
    (checkpoints / CHECKPOINT).mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
    (run.folder / "status.json").write_text(json.dumps({"state": state}), encoding="utf-8")
    if not (run.folder / "best").exists():
        (run.folder / "best").symlink_to(f"checkpoints/{CHECKPOINT}")


def write_identity(run: SweepRun, ranks: int) -> None:
    """A checkpoint that says of how many ranks it is."""
    path = run.folder / "checkpoints" / CHECKPOINT
    shutil.rmtree(path, ignore_errors=True)
    state = TrainableState(*({"weight": torch.ones(2)} for _ in range(3)), 4)
    write_checkpoint(path, state, Progress(step=81), Identity("frozen", "questions", "bfloat16", ranks), run.config)


def answer(run: SweepRun, styles_right: Mapping[str, int]) -> None:
    """An evaluation for each ablation, in which so many styles of twenty are right."""
    table = make_table(run.folder.parent)
    for ablation, right in styles_right.items():
        most = run.config.evaluation.max_new_tokens
        write_evaluation(run.folder, ablation, table, answers_to(table, right), CHECKPOINT, max_new_tokens=most)
