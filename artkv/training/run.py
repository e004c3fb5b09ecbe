"""Wires a training run: data, model, engine, logs, and where it starts."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from artkv.config import Config, dump_config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.pictures import PaintingTransform, open_picture
from artkv.datasets.table import QuestionTable, find_problems, format_problems, read_table
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.answering import AnsweringSettings, answer_questions, score_answers
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.models.loading import BuiltModel, build_model, painting_transform
from artkv.monitoring.environment import environment_report
from artkv.monitoring.run_log import RunLog
from artkv.monitoring.tensorboard_log import AnsweredQuestion
from artkv.training.checkpoint import (
    Checkpoint,
    Identity,
    Progress,
    check_fits,
    load_checkpoint,
    load_latest,
    mark_best,
    resolve_checkpoint,
)
from artkv.training.engine import TrainableState, TrainingEngine
from artkv.training.loop import TrainingData, Validate, fit, total_steps

_PICTURES_IN_TENSORBOARD = 8


def train(config: Config, resume: str | Literal["latest", "auto"] | None, world: World) -> Progress:
    """Trains by `config`, from the start or from a checkpoint, and returns where it ended.

    resume: None for a fresh run; `latest`, the newest checkpoint of run.output_dir; `auto`, the same if
    there is one, else a fresh run; or a path that `resolve_checkpoint` takes.
    """
    training = config.training
    deepspeed_tree = load_deepspeed_config(training.deepspeed)
    run_dir = config.run.output_dir
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    train_table, val_table = _read_tables(config, world)
    checkpoint = _checkpoint_to_resume(run_dir, resume, world)
    data_hash = _data_hash(train_table)
    accumulation = training.gradient_accumulation_steps
    if checkpoint is not None:
        accumulation = _accumulation_on_resume(checkpoint, config, data_hash, world)

    built = build_model(
        config.model, config.efficientnet, config.kv_modulation, config.trainable, training.seed,
        world.device, training.activation_checkpointing,
    )  # fmt: skip
    identity = Identity(built.frozen_hash, data_hash, training.seed, training.batch_size, accumulation * world.size)
    state, progress = _starting_point(built, checkpoint, config)
    model = built.model
    engine = TrainingEngine(
        model,
        fill_deepspeed_config(
            deepspeed_tree, training, accumulation, world.size,
            model.backbone.dtype == torch.bfloat16, sum(p.numel() for p in model.parameters()),
        ),
        training.weight_decay,
        state,
    )  # fmt: skip
    transform = painting_transform(model, config.efficientnet)
    data = TrainingData(train_table, transform, config.dataset.prompt, config.dataset.workers)
    steps = total_steps(
        train_table, training.batch_size, training.seed, training.num_epochs, identity.micro_batches_per_step
    )
    if world.is_main:
        _write_run_files(run_dir, config, checkpoint)
    world.barrier()
    log = RunLog(run_dir, world.rank, steps, resume_step=progress.step if checkpoint else None)
    try:
        log.config(dump_config(config), step=progress.step)
        log.note(_summary(built, train_table, steps, world))
        validate = _validation(model, val_table, transform, config, log, world) if val_table is not None else None
        progress = fit(engine, data, config, identity, progress, run_dir, log, world, validate)
    finally:
        log.close()
    engine.close()
    return progress


def _read_tables(config: Config, world: World) -> tuple[QuestionTable, QuestionTable | None]:
    """Both tables, checked; the ranks share the decoding of the pictures, and all learn what any found."""
    dataset = config.dataset
    for key in ("train", "image_root"):
        if getattr(dataset, key) is None:
            raise UserError(f"dataset.{key} is not set; give the path of your data")
    assert dataset.train is not None
    assert dataset.image_root is not None
    paths = [dataset.train]
    if config.evaluation.each_epoch:
        if dataset.val is None:
            raise UserError("dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false")
        paths.append(dataset.val)
    images = ImageIndex(dataset.image_root)
    share = (world.rank, world.size)
    problems = [problem for path in paths for problem in find_problems(path, images, share=share)]
    found_by_any = {problem for part in world.gather(problems) for problem in part}
    if found_by_any:
        order = {path: place for place, path in enumerate(paths)}
        raise UserError(format_problems(sorted(found_by_any, key=lambda p: (order[p.path], p.line, p.message))))
    tables = [read_table(path, images) for path in paths]
    return tables[0], tables[1] if len(tables) > 1 else None


def _checkpoint_to_resume(run_dir: Path, resume: str | None, world: World) -> Checkpoint | None:
    """Rank 0 chooses and verifies; the others read what it chose."""
    chosen: str | None = None
    problem: str | None = None
    if world.is_main:
        try:
            chosen = _choose_checkpoint(run_dir, resume)
        except UserError as error:
            problem = str(error)
    chosen, problem = world.broadcast((chosen, problem))
    if problem is not None:
        raise UserError(problem)
    return None if chosen is None else load_checkpoint(Path(chosen))


def _choose_checkpoint(run_dir: Path, resume: str | None) -> str | None:
    if resume is None:
        if any((run_dir / "checkpoints").glob("step_*")):
            raise UserError(
                f"run.output_dir = {run_dir}: holds a run already; add --resume latest to go on with it, "
                "or give another folder"
            )
        return None
    if resume not in ("latest", "auto"):
        return str(resolve_checkpoint(Path(resume)))
    checkpoint = load_latest(run_dir)
    if checkpoint is None and resume == "latest":
        raise UserError(f"--resume latest: {run_dir} has no checkpoint; leave --resume out to start")
    return None if checkpoint is None else str(checkpoint.path)


def _accumulation_on_resume(checkpoint: Checkpoint, config: Config, data_hash: str, world: World) -> int:
    """The accumulation that keeps the saved run's global batch on the ranks there are now."""
    saved = checkpoint.identity
    for section, key in (("training", "seed"), ("training", "batch_size"), ("dataset", "prompt")):
        before, now = (getattr(getattr(settings, section), key) for settings in (checkpoint.config, config))
        if before != now:
            raise UserError(
                f"{checkpoint.path}: was trained with {section}.{key}={before}, now {now}; the run would not go on "
                f"as it began; set {section}.{key}={before}"
            )
    if saved.data_hash != data_hash:
        raise UserError(
            f"{checkpoint.path}: dataset.train = {config.dataset.train} has other rows than the run was trained "
            "on; restore that file, or start a new run"
        )
    if saved.micro_batches_per_step % world.size:
        fitting = [n for n in range(1, saved.micro_batches_per_step + 1) if saved.micro_batches_per_step % n == 0]
        raise UserError(
            f"{checkpoint.path}: a step has {saved.micro_batches_per_step} micro-batches, which {world.size} ranks "
            f"cannot share evenly; start {' or '.join(map(str, fitting))} ranks"
        )
    accumulation = saved.micro_batches_per_step // world.size
    if accumulation != config.training.gradient_accumulation_steps and world.is_main:
        print(
            f"artkv: gradient accumulation is {accumulation} on {world.size} ranks, to keep the saved run's "
            f"{saved.micro_batches_per_step} micro-batches a step",
            file=sys.stderr,
        )
    return accumulation


def _starting_point(
    built: BuiltModel, checkpoint: Checkpoint | None, config: Config
) -> tuple[TrainableState, Progress]:
    if checkpoint is None:
        return TrainableState(built.initial_values, {}, {}, 0), Progress()
    check_fits(checkpoint, config, built.initial_values, built.frozen_hash)
    return checkpoint.state, checkpoint.progress


def _write_run_files(run_dir: Path, config: Config, checkpoint: Checkpoint | None) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps(environment_report(), indent=2), encoding="utf-8")
    if checkpoint is None or checkpoint.progress.best_step != checkpoint.progress.step:
        return
    if checkpoint.path.resolve().parent == (run_dir / "checkpoints").resolve():
        mark_best(run_dir, checkpoint.progress.step)  # a kill between the checkpoint and its mark loses the mark


def _summary(built: BuiltModel, table: QuestionTable, steps: int, world: World) -> str:
    trainable = sum(p.numel() for p in built.model.parameters())
    frozen = sum(p.numel() for p in built.model.backbone.named_parameters().values() if not p.requires_grad)
    dtype = str(built.model.backbone.dtype).removeprefix("torch.")
    return (
        f"training {trainable / 1e6:.2f}M parameters beside {frozen / 1e6:.1f}M frozen ones in {dtype} on "
        f"{world.size} x {world.device.type}: {len(table)} questions about {table.num_paintings} paintings, "
        f"{steps} steps"
    )


def _validation(
    model: KVModulatedBlip2,
    table: QuestionTable,
    transform: PaintingTransform,
    config: Config,
    log: RunLog,
    world: World,
) -> Validate:
    settings = answering_settings(config)

    def validate(step: int) -> float:
        answers = answer_questions(model, table, transform, settings, world)
        scores = score_answers(answers, table, config.evaluation.bootstrap_samples, config.training.seed)
        metrics = {
            name: getattr(scores.overall, name).value for name in ("exact_match", "bleu", "bleu_artquest", "token_f1")
        }
        metrics |= {f"exact_match/{kind}": group.exact_match.value for kind, group in scores.by_type.items()}
        log.validation(step, metrics, _samples(table, answers) if world.is_main else ())
        log.note(f"step {step}: validation exact match {metrics['exact_match']:.3f}")
        return metrics["exact_match"]

    return validate


def answering_settings(config: Config) -> AnsweringSettings:
    """How a config has questions answered."""
    return AnsweringSettings(
        prompt=config.dataset.prompt,
        batch_size=config.evaluation.batch_size,
        max_new_tokens=config.evaluation.max_new_tokens,
        workers=config.dataset.workers,
        seed=config.training.seed,
    )


def _samples(table: QuestionTable, answers: list[str]) -> list[AnsweredQuestion]:
    """A few questions spread over the table, always the same, so that their answers can be followed."""
    stride = max(1, len(table) // _PICTURES_IN_TENSORBOARD)
    rows = range(0, len(table), stride)[:_PICTURES_IN_TENSORBOARD]

    def picture(row: int) -> Image.Image:
        return open_picture(table.painting_paths[int(table.painting_of_row[row])])

    return [AnsweredQuestion(picture(r), table.questions[r], table.answers[r], answers[r]) for r in rows]


def _data_hash(table: QuestionTable) -> str:
    """SHA-256 of the rows, in order: the paintings they belong to, their questions and answers."""
    sha = hashlib.sha256()
    for row in range(len(table)):
        painting = int(table.painting_of_row[row])
        sha.update(json.dumps([painting, table.questions[row], table.answers[row]]).encode())
    return sha.hexdigest()
