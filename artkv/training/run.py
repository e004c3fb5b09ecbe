"""Wires a training run: where it starts, its engine, its logs, its folder."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from artkv.config import Config, dump_config
from artkv.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from artkv.datasets.data_hash import data_hash_of
from artkv.distributed import World
from artkv.errors import Preempted, UserError
from artkv.files import told, write_whole
from artkv.models.opt.tree_attention import use_tree_attention
from artkv.monitoring.environment import environment_report
from artkv.monitoring.rank_log import rank_log
from artkv.monitoring.run_log import RunLog
from artkv.monitoring.trackers import check_trackers
from artkv.planning.placement import Use
from artkv.run_folder.checkpoint import Checkpoint, open_checkpoint
from artkv.run_folder.checkpoints import RunCheckpoints
from artkv.run_folder.heartbeat import Heartbeat
from artkv.run_folder.layout import CHECKPOINTS, CONFIG, ENVIRONMENT, step_of
from artkv.run_folder.marker import remove_marker
from artkv.run_folder.output_folder import check_is_new, check_no_file_is_in_the_way, check_output_folder
from artkv.run_folder.run_lock import RunLock, run_lock
from artkv.run_folder.separation import check_is_apart
from artkv.run_folder.state import Identity, Progress, TrainableState
from artkv.run_folder.state_record import RecordedState, recorded_state
from artkv.session import Session, pictures_folder, training_splits
from artkv.training.engine import TrainingEngine
from artkv.training.loop import fit, is_finished
from artkv.training.placing import engine_that_fits
from artkv.training.preemption import StopRequests, job_end_time
from artkv.training.saving import Saver
from artkv.training.schedule import total_steps, warmup_steps
from artkv.training.stops import RunStops
from artkv.training.validation import validation


class Resumed(NamedTuple):
    """A checkpoint to go on from, and its tensors, read and verified on every rank."""

    checkpoint: Checkpoint
    state: TrainableState


def train(
    config: Config,
    resume: str | Literal["latest", "auto"] | None,
    world: World,
    requests: StopRequests | None = None,
    heartbeat: Heartbeat | None = None,
) -> Progress:
    """Trains by `config`, from the start or from a checkpoint, and returns where it ended.

    resume: None for a fresh run; `latest`, the newest checkpoint of run.output_dir; `auto`, the same if
    there is one, else a fresh run; or a path that `open_checkpoint` takes. requests: what may ask for an early
    stop, which raises `Preempted` once it is saved; None: nothing may. heartbeat: of a supervised rank. A folder that
    another run is using is a `UserError`.
    """
    training, run_dir = config.training, config.run.output_dir
    requests = requests or StopRequests()
    end = world.broadcast(world.on_main(lambda: job_end_time(os.environ)))
    requests.watch_walltime(end, config.run.stop_before_walltime_minutes)
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    deepspeed_tree = world.together(lambda: load_deepspeed_config(training.deepspeed))
    world.together(lambda: check_output_folder(run_dir))
    world.on_main(lambda: check_is_apart(config))
    world.together(lambda: check_trackers(config.run.trackers))
    session = Session(config, world, world.together(lambda: training_splits(config)))
    with run_lock(run_dir, world, config.distributed.timeout_minutes) as lock:
        # First, the marker of an earlier start: if this one now fails, it must not look preempted.
        world.on_main(lambda: remove_marker(run_dir))
        # Before `recorded_state`, so that a refused command does not touch status.json.
        world.on_main(lambda: _refuse_to_overwrite(run_dir, resume, config.run.checkpoint_every))
        with recorded_state(run_dir, world) as state:
            resumed = _checkpoint_to_resume(run_dir, resume, world)
            first_step = resumed.checkpoint.progress.step if resumed else 0
            world.on_main(lambda: check_no_file_is_in_the_way(run_dir, first_step))
            stops = RunStops(requests, world, run_dir, first_step, heartbeat)
            stops.stop_if_asked()
            with rank_log(run_dir, world.rank):
                return _train_from(resumed, session, deepspeed_tree, stops, lock, state)


def _train_from(
    resumed: Resumed | None,
    session: Session,
    deepspeed_tree: dict[str, Any],
    stops: RunStops,
    lock: RunLock | None,
    record: RecordedState,
) -> Progress:
    """Checks the checkpoint to go on from against data and model, starts engine and logs, and trains."""
    config, world = session.config, session.world
    training, run_dir, table = config.training, config.run.output_dir, session.tables["train"]
    data_hash = data_hash_of(table, pictures_folder(config.dataset))
    accumulation = training.gradient_accumulation_steps
    if resumed is not None:
        world.together(lambda: _check_same_questions(resumed.checkpoint, config, data_hash))
        accumulation = _accumulation_on_resume(resumed.checkpoint, config, world)

    steps = total_steps(table, config, accumulation * world.size)
    warmup_steps(training, steps)  # raises for one that is too long

    def after_each_batch(has_shards: bool) -> None:
        stops.begin("caching")
        if has_shards:
            stops.note_gain()
        stops.stop_if_asked()

    def load(use: Use) -> None:
        session.load(None, after_each_batch, use)
        if training.pack_questions:
            backbone = session.model.backbone
            use_tree_attention(backbone.language_model, backbone.dtype, world)

    use = Use(trains=True, accumulation=accumulation)
    load(use)
    stops.begin("starting")
    dtype = str(session.model.backbone.dtype).removeprefix("torch.")
    identity = Identity(session.built.frozen_hash, data_hash, dtype, accumulation * world.size)
    _check_ranks_agree(identity, world)
    state, progress = TrainableState(session.built.initial_values, {}, {}, 0), Progress()
    if resumed is not None:
        world.together(lambda: _check_belongs(resumed.checkpoint, session, identity))
        state, progress = resumed.state, resumed.checkpoint.progress
    stops.stop_if_asked()
    if resumed is not None and world.broadcast(world.on_main(lambda: _has_nothing_to_do(resumed.checkpoint, config))):
        return progress  # config, environment and status stay those of the start that trained
    num_trainable = sum(parameter.numel() for parameter in session.model.parameters())
    is_bf16 = session.model.backbone.dtype == torch.bfloat16
    deepspeed_config = fill_deepspeed_config(deepspeed_tree, training, accumulation, world.size, is_bf16, num_trainable)
    engine = engine_that_fits(
        session, use, load,
        lambda: TrainingEngine(session.model, deepspeed_config, training.weight_decay, state),
    )  # fmt: skip
    world.on_main(lambda: _prepare_run_folder(config, None if resumed is None else resumed.checkpoint))
    begin_at = progress.step if resumed else None
    again, trackers = progress.validation_due, config.run.trackers
    log = world.together(lambda: RunLog(run_dir, world.rank, steps, begin_at, again, trackers))
    try:
        log.config(dump_config(config), step=progress.step)
        log.note(_summary(session, steps))
        stops.stop_if_asked()
        record.begin_training(steps)
        stops.begin("training")
        saver = Saver(RunCheckpoints(run_dir), config, identity, lock, world, lambda step: record.note(saved_step=step))
        validate = validation(session, log, stops) if "val" in session.questions else None
        log.settings(main_settings(config), "train/loss" if validate is None else "validation/exact_match")
        try:
            progress = fit(session, engine, progress, saver, log, stops, validate)
        except Preempted as stop:
            saver.check_stop(stop)
            raise
        saver.finish(stops.is_asked)
        log.finished()
    finally:
        log.close()
    engine.close()
    return progress


def _checkpoint_to_resume(run_dir: Path, resume: str | None, world: World) -> Resumed | None:
    """Rank 0 chooses; all ranks read and verify what it chose."""
    chosen = world.broadcast(world.on_main(lambda: _choose_checkpoint(run_dir, resume)))
    return None if chosen is None else world.together(lambda: _read(Path(chosen)))


def _read(path: Path) -> Resumed:
    checkpoint = open_checkpoint(path)
    return Resumed(checkpoint, checkpoint.state())


def _refuse_to_overwrite(run_dir: Path, resume: str | None, checkpoint_every: int) -> None:
    names = RunCheckpoints(run_dir).newest_first()
    check_no_file_is_in_the_way(run_dir, (step_of(names[0]) or 0) if names else 0)
    if not names:
        check_is_new(run_dir, checkpoint_every)
        return
    if resume in ("latest", "auto"):
        return
    if resume is None:
        raise UserError(
            f"run.output_dir = {run_dir}: holds a run already; add --resume latest to go on with it, "
            "or give another folder"
        )
    if open_checkpoint(resume, to_resume=True).path.parent != (run_dir / CHECKPOINTS).resolve():
        raise UserError(
            f"run.output_dir = {run_dir}: holds a run already, and --resume {resume} is of another; give another folder"
        )


def _choose_checkpoint(run_dir: Path, resume: str | None) -> str | None:
    if resume is None:
        return None
    if resume not in ("latest", "auto"):
        return str(open_checkpoint(resume, to_resume=True).path)
    checkpoint = RunCheckpoints(run_dir).latest()
    if checkpoint is None and resume == "latest":
        raise UserError(f"--resume latest: {run_dir} has no checkpoint; leave --resume out to start")
    return None if checkpoint is None else str(checkpoint.path)


def _check_same_questions(checkpoint: Checkpoint, config: Config, data_hash: str) -> None:
    """Raises `UserError` unless the order of questions can go on from the checkpoint."""
    kept = [("training", "seed"), ("training", "batch_size"), ("dataset", "prompt")]
    checkpoint.check_same_settings(config, kept)
    if checkpoint.identity.data_hash != data_hash:
        checkpoint.check_same_settings(config, [("dataset", "limit")])  # not before: two limits may hold all rows
        raise UserError(
            f"{checkpoint.path}: dataset.train = {config.dataset.train} has other rows than the run was trained "
            "on; restore that file, or start a new run"
        )


def _accumulation_on_resume(checkpoint: Checkpoint, config: Config, world: World) -> int:
    """The accumulation that keeps the saved run's global batch on the ranks there are now."""
    saved = checkpoint.identity
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


def _check_belongs(checkpoint: Checkpoint, session: Session, identity: Identity) -> None:
    checkpoint.check_fits(session.config, session.built.initial_values)
    checkpoint.check_frozen_weights(identity.frozen_hash)
    if checkpoint.identity.dtype != identity.dtype:
        raise UserError(
            f"{checkpoint.path}: was trained in {checkpoint.identity.dtype}, now {identity.dtype}; "
            f"set model.dtype={checkpoint.identity.dtype}",
            on_all_ranks=True,
        )


def _has_nothing_to_do(checkpoint: Checkpoint, config: Config) -> bool:
    """Whether the run in `run.output_dir` is finished with this checkpoint; its `best` is then what it should be.

    Raises `UserError` for a finished run that is to go on in another folder, where there would be nothing of it.
    """
    progress = checkpoint.progress
    if not is_finished(progress, config) or progress.validation_due:
        return False
    checkpoints = RunCheckpoints(config.run.output_dir)
    if not _is_own(checkpoint, config):
        raise UserError(
            f"{checkpoint.path}: its run is finished, and nothing would come into run.output_dir = "
            f"{config.run.output_dir}; raise training.num_epochs, or use the run where it is",
            on_all_ranks=True,
        )
    if checkpoints.newest_first()[0] != checkpoint.path.name:
        return False  # what is newer has to be set aside
    _mark_best(checkpoints, progress)
    return True


def _is_own(checkpoint: Checkpoint, config: Config) -> bool:
    return checkpoint.path.resolve().parent == (config.run.output_dir / CHECKPOINTS).resolve()


def _prepare_run_folder(config: Config, checkpoint: Checkpoint | None) -> None:
    """Writes the run's files, and puts its checkpoints into the state of the one that it goes on from."""
    run_dir = config.run.output_dir
    texts = {CONFIG: dump_config(config), ENVIRONMENT: json.dumps(environment_report(), indent=2)}
    with told(f"run.output_dir = {run_dir}", "make room, or give another folder"):
        for name, text in texts.items():
            write_whole(run_dir / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        if checkpoint is None or not _is_own(checkpoint, config):
            return
        checkpoints = RunCheckpoints(run_dir)
        for name, stale in checkpoints.set_aside_newer(checkpoint.progress.step).items():
            print(f"artkv: {name} is newer than the checkpoint to go on from; renamed to {stale}", file=sys.stderr)
        _mark_best(checkpoints, checkpoint.progress)


def _mark_best(checkpoints: RunCheckpoints, progress: Progress) -> None:
    """Marks the best checkpoint anew: a kill between a checkpoint and its mark loses the mark."""
    if progress.best_step is not None and checkpoints.has(progress.best_step):
        checkpoints.mark_best(progress.best_step)


def _summary(session: Session, steps: int) -> str:
    world, table, backbone = session.world, session.tables["train"], session.model.backbone
    trainable = sum(p.numel() for p in session.model.parameters())
    dtype = str(backbone.dtype).removeprefix("torch.")
    return (
        f"training {trainable / 1e6:.2f}M parameters, beside BLIP-2's {backbone.num_parameters / 1e6:.1f}M, in {dtype} "
        f"on {world.size} x {world.device.type}: {len(table)} questions about {table.num_paintings} paintings, "
        f"{steps} steps"
    )


def main_settings(config: Config) -> dict[str, float | str]:
    """What runs are compared by, by the settings' names; numbers, and all else as text."""
    sections = {name: getattr(config, name).model_dump() for name in ("kv_modulation", "trainable", "training")}
    lora = sections["trainable"].pop("lora")
    flat = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    flat |= {f"trainable.lora.{key}": value for key, value in lora.items()}
    flat |= {
        "model.blip2": config.model.blip2,
        "model.backend": config.model.backend,
        "model.dtype": config.model.dtype,
    }
    is_number = {name: isinstance(value, (int, float)) and not isinstance(value, bool) for name, value in flat.items()}
    return {name: value if is_number[name] else str(value) for name, value in flat.items()}
