"""Wires a training run: data, model, engine, logs, and where it starts."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from artkv.config import Config, dump_config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.checked_tables import read_checked_tables
from artkv.datasets.packing import PackingSettings
from artkv.datasets.painting_source import DecodedPictures, PaintingSource
from artkv.datasets.pictures import open_picture
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.distributed import World
from artkv.errors import UserError
from artkv.evaluation.answering import (
    AnsweringSettings,
    GaveUp,
    answer_questions,
    answering_settings,
    score_answers,
    tokenize_checked,
)
from artkv.feature_cache import cache_settings, decoded_before, prepare_features
from artkv.models.assembly import BuiltModel, build_model
from artkv.models.frozen_encoders import painting_transform
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.monitoring.environment import environment_report
from artkv.monitoring.rank_log import rank_log
from artkv.monitoring.run_log import RunLog
from artkv.monitoring.tensorboard_log import AnsweredQuestion
from artkv.run_folder.checkpoint import (
    Checkpoint,
    check_fits,
    check_same_frozen_weights,
    check_same_settings,
    has_checkpoint,
    load_checkpoint,
    load_latest,
    mark_best,
    resolve_checkpoint,
    set_aside_newer,
)
from artkv.run_folder.marker import remove_marker
from artkv.run_folder.run_lock import RunLock, check_output_folder, run_lock
from artkv.run_folder.state import Identity, Progress, TrainableState
from artkv.run_folder.status import recorded_state
from artkv.training.engine import TrainingEngine
from artkv.training.loop import TrainingData, Validate, fit, total_steps
from artkv.training.preemption import StopRequests, job_end_time
from artkv.training.saving import Saver

_PICTURES_IN_TENSORBOARD = 8


def train(
    config: Config,
    resume: str | Literal["latest", "auto"] | None,
    world: World,
    stops: StopRequests | None = None,
) -> Progress:
    """Trains by `config`, from the start or from a checkpoint, and returns where it ended.

    resume: None for a fresh run; `latest`, the newest checkpoint of run.output_dir; `auto`, the same if
    there is one, else a fresh run; or a path that `resolve_checkpoint` takes. stops: what may ask for an early
    stop, which raises `Preempted` once it is saved; None: nothing may. A folder that another run is using is a
    `UserError`.
    """
    training = config.training
    run_dir = config.run.output_dir
    stops = stops or StopRequests()
    end = world.broadcast(job_end_time(os.environ) if world.is_main else None)
    stops.watch_walltime(end, config.run.stop_before_walltime_minutes)
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    deepspeed_tree = world.together(lambda: load_deepspeed_config(training.deepspeed))
    world.together(lambda: check_output_folder(run_dir))
    csv_paths, image_root = world.together(lambda: _data_paths(config))
    tables = read_checked_tables(csv_paths, image_root, world, decoded_before(config.frozen.feature_cache))
    with run_lock(run_dir, world, config.distributed.timeout_minutes) as lock:
        # The marker of the start before goes first, so that none that fails now is taken for a preempted one.
        world.together(lambda: remove_marker(run_dir) if world.is_main else None)
        # A command that is refused leaves the run's state as it is.
        world.together(lambda: _refuse_to_overwrite(run_dir, resume) if world.is_main else None)
        with recorded_state(run_dir, world) as begin_training:
            checkpoint = _checkpoint_to_resume(run_dir, resume, world)
            stops.check(world, run_dir, checkpoint.progress.step if checkpoint else 0)
            with rank_log(run_dir, world.rank):
                return _train_from(
                    checkpoint, config, deepspeed_tree, tables, image_root, world, stops, lock, begin_training
                )


def _train_from(
    checkpoint: Checkpoint | None,
    config: Config,
    deepspeed_tree: dict[str, Any],
    tables: list[QuestionTable],
    image_root: Path,
    world: World,
    stops: StopRequests,
    lock: RunLock | None,
    begin_training: Callable[[int], None],
) -> Progress:
    training = config.training
    run_dir = config.run.output_dir
    train_table, *val_tables = tables
    data_hash = _data_hash(train_table, image_root)
    accumulation = training.gradient_accumulation_steps
    if checkpoint is not None:
        accumulation = _accumulation_on_resume(checkpoint, config, data_hash, world)

    features = None
    if config.frozen.feature_cache is not None:

        def between_rounds(has_shards: bool) -> None:
            stops.has_gained |= has_shards
            stops.check(world, run_dir, 0 if checkpoint is None else checkpoint.progress.step)

        features = prepare_features(cache_settings(config), [train_table, *val_tables], world, between_rounds)
    built = world.together(
        lambda: build_model(
            config.model, config.efficientnet, config.kv_modulation, config.trainable, config.frozen,
            training.seed, world.device, training.activation_checkpointing,
            world.gather, world.together,
        )
    )  # fmt: skip
    model = built.model
    settings = answering_settings(config.dataset, config.evaluation, training.seed)
    texts, *val_texts = world.together(lambda: tokenize_checked(model, [train_table, *val_tables], settings))
    dtype = str(model.backbone.dtype).removeprefix("torch.")
    identity = Identity(built.frozen_hash, data_hash, dtype, accumulation * world.size)
    _check_ranks_agree(identity, world)
    state, progress = TrainableState(built.initial_values, {}, {}, 0), Progress()
    if checkpoint is not None:
        _check_belongs(checkpoint, built, identity, config)
        state, progress = checkpoint.state, checkpoint.progress
    stops.check(world, run_dir, progress.step)
    engine = TrainingEngine(
        model,
        fill_deepspeed_config(
            deepspeed_tree, training, accumulation, world.size,
            model.backbone.dtype == torch.bfloat16, sum(p.numel() for p in model.parameters()),
        ),
        training.weight_decay,
        state,
    )  # fmt: skip
    transform = painting_transform(model.backbone.image_settings, config.efficientnet)
    packing = None
    if training.pack_questions:
        packing = PackingSettings(model.backbone.num_query_tokens, model.backbone.language_model_width)
    paintings, *val_paintings = (
        features.paintings(table) if features else DecodedPictures(table, transform)
        for table in [train_table, *val_tables]
    )
    data = TrainingData(train_table, texts, paintings, config.dataset.workers, packing)
    steps = total_steps(
        train_table, training.batch_size, training.seed, training.num_epochs, identity.micro_batches_per_step
    )
    world.together(lambda: _prepare_run_folder(run_dir, config, checkpoint) if world.is_main else None)
    log = RunLog(
        run_dir, world.rank, steps, progress.step if checkpoint else None, redo_validation=progress.validation_due
    )
    try:
        log.config(dump_config(config), step=progress.step)
        log.note(_summary(built, train_table, steps, world))
        stops.check(world, run_dir, progress.step)
        validate = None
        if val_tables:
            validate = _validation(model, val_tables[0], val_texts[0], val_paintings[0], settings, log, world, stops)
        begin_training(steps)
        saver = Saver(run_dir, config, identity, lock, world)
        progress = fit(engine, data, config, progress, saver, log, world, validate, stops)
    finally:
        log.close()
    engine.close()
    return progress


def _data_paths(config: Config) -> tuple[list[Path], Path]:
    """The CSV files to train and validate on, and the folder of the pictures."""
    dataset = config.dataset
    if dataset.train is None:
        raise UserError("dataset.train is not set; give the CSV file to train on")
    if dataset.image_root is None:
        raise UserError("dataset.image_root is not set; give the folder that holds the pictures")
    if not config.evaluation.each_epoch:
        return [dataset.train], dataset.image_root
    if dataset.val is None:
        raise UserError("dataset.val is not set; give a CSV file, or set evaluation.each_epoch=false")
    return [dataset.train, dataset.val], dataset.image_root


def _checkpoint_to_resume(run_dir: Path, resume: str | None, world: World) -> Checkpoint | None:
    """Rank 0 chooses; all ranks read and verify what it chose."""
    chosen = world.broadcast(world.together(lambda: _choose_checkpoint(run_dir, resume) if world.is_main else None))
    return None if chosen is None else world.together(lambda: load_checkpoint(Path(chosen)))


def _refuse_to_overwrite(run_dir: Path, resume: str | None) -> None:
    if resume in ("latest", "auto") or not any((run_dir / "checkpoints").glob("step_*")):
        return
    if resume is None:
        raise UserError(
            f"run.output_dir = {run_dir}: holds a run already; add --resume latest to go on with it, "
            "or give another folder"
        )
    if resolve_checkpoint(Path(resume)).parent != (run_dir / "checkpoints").resolve():
        raise UserError(
            f"run.output_dir = {run_dir}: holds a run already, and --resume {resume} is of another; give another folder"
        )


def _choose_checkpoint(run_dir: Path, resume: str | None) -> str | None:
    if resume is None:
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
    kept = [("training", "seed"), ("training", "batch_size"), ("dataset", "prompt")]
    check_same_settings(checkpoint.path, checkpoint.config, config, kept)
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


def _check_ranks_agree(identity: Identity, world: World) -> None:
    """Raises `UserError` if another host has other files, or another idea of `model.dtype: auto`."""
    identities = world.gather(identity)
    for rank, other in enumerate(identities):
        if other != identities[0]:
            raise UserError(
                f"rank {rank} has {other}, rank 0 {identities[0]}; give all hosts the same files and, where their "
                "devices differ, set model.dtype",
                on_all_ranks=True,
            )


def _check_belongs(checkpoint: Checkpoint, built: BuiltModel, identity: Identity, config: Config) -> None:
    check_fits(checkpoint.path, checkpoint.config, config, checkpoint.state.masters, built.initial_values)
    check_same_frozen_weights(checkpoint.path, checkpoint.identity.frozen_hash, identity.frozen_hash)
    if checkpoint.identity.dtype != identity.dtype:
        raise UserError(
            f"{checkpoint.path}: was trained in {checkpoint.identity.dtype}, now {identity.dtype}; "
            f"set model.dtype={checkpoint.identity.dtype}",
            on_all_ranks=True,
        )


def _prepare_run_folder(run_dir: Path, config: Config, checkpoint: Checkpoint | None) -> None:
    """Writes the run's files, and puts its checkpoints into the state of the one that it goes on from."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps(environment_report(), indent=2), encoding="utf-8")
    if checkpoint is None or checkpoint.path.resolve().parent != (run_dir / "checkpoints").resolve():
        return
    for name in set_aside_newer(run_dir, checkpoint.progress.step):
        print(f"artkv: {name} is newer than the checkpoint to go on from; renamed to stale_{name}", file=sys.stderr)
    best_step = checkpoint.progress.best_step
    if best_step is not None and has_checkpoint(run_dir, best_step):
        mark_best(run_dir, best_step)  # a kill between the checkpoint and its mark loses the mark


def _summary(built: BuiltModel, table: QuestionTable, steps: int, world: World) -> str:
    trainable = sum(p.numel() for p in built.model.parameters())
    frozen = built.model.backbone.num_parameters
    dtype = str(built.model.backbone.dtype).removeprefix("torch.")
    return (
        f"training {trainable / 1e6:.2f}M parameters, beside BLIP-2's {frozen / 1e6:.1f}M, in {dtype} on "
        f"{world.size} x {world.device.type}: {len(table)} questions about {table.num_paintings} paintings, "
        f"{steps} steps"
    )


def _validation(
    model: KVModulatedBlip2,
    table: QuestionTable,
    texts: TokenizedTable,
    paintings: PaintingSource,
    settings: AnsweringSettings,
    log: RunLog,
    world: World,
    stops: StopRequests,
) -> Validate:
    def validate(step: int) -> float | None:
        try:
            answers = answer_questions(
                model, table, texts, paintings, settings, world, gives_up=lambda: stops.reason is not None
            )
        except GaveUp:
            return None
        exact_match = 0.0
        if world.is_main:
            scores = score_answers(answers, table, bootstrap_samples=1, seed=settings.seed)  # means alone
            names = ("exact_match", "bleu", "bleu_artquest", "token_f1")
            metrics = {name: getattr(scores.overall, name).value for name in names}
            metrics |= {f"exact_match/{kind}": group.exact_match.value for kind, group in scores.by_type.items()}
            log.validation(step, metrics, _samples(table, answers))
            log.note(f"step {step}: validation exact match {metrics['exact_match']:.3f}")
            exact_match = metrics["exact_match"]
        return world.broadcast(exact_match)

    return validate


def _samples(table: QuestionTable, answers: list[str]) -> list[AnsweredQuestion]:
    """A few questions spread over the table, always the same, so that their answers can be followed."""
    stride = max(1, len(table) // _PICTURES_IN_TENSORBOARD)
    rows = range(0, len(table), stride)[:_PICTURES_IN_TENSORBOARD]

    def picture(row: int) -> Image.Image:
        return open_picture(table.painting_paths[int(table.painting_of_row[row])])

    return [AnsweredQuestion(picture(r), table.questions[r], table.answers[r], answers[r]) for r in rows]


def _data_hash(table: QuestionTable, image_root: Path) -> str:
    """SHA-256 of the rows, in order: their pictures below `image_root`, questions and answers."""
    sha = hashlib.sha256()
    for row in range(len(table)):
        painting = table.painting_paths[int(table.painting_of_row[row])].relative_to(image_root)
        sha.update(json.dumps([str(painting), table.questions[row], table.answers[row]]).encode())
    return sha.hexdigest()
