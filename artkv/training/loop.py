"""The training loop: one linear function, from the first step to the last."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from artkv.config import Config
from artkv.datasets.batches import training_loader
from artkv.datasets.order import plan_epoch
from artkv.datasets.packing import PackingSettings
from artkv.datasets.painting_source import PaintingSource
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenized_table import TokenizedTable
from artkv.distributed import World
from artkv.errors import RunFailed
from artkv.monitoring.memory import peak_device_bytes, peak_host_bytes
from artkv.monitoring.run_log import RunLog
from artkv.monitoring.stragglers import OwnTime, Stragglers
from artkv.monitoring.throughput import StepClock
from artkv.run_folder.state import Progress
from artkv.training.engine import TrainingEngine
from artkv.training.preemption import StopRequests
from artkv.training.saving import Saver
from artkv.training.step import seed_step, train_step

# Scores a validation: called with the steps done, on all ranks; returns the exact match, None if it was broken off.
Validate = Callable[[int], float | None]


@dataclass(frozen=True)
class TrainingData:
    """What the loop trains on: the table, its texts' token ids and its paintings.

    packing: how questions are packed; None: one row a question.
    """

    table: QuestionTable
    tokenized: TokenizedTable
    paintings: PaintingSource
    workers: int
    packing: PackingSettings | None


def total_steps(table: QuestionTable, batch_size: int, seed: int, num_epochs: int, per_step: int) -> int:
    """Optimizer steps of the whole run; epochs differ by a few, as paintings fill micro-batches differently."""
    plans = (plan_epoch(table.painting_of_row, batch_size, seed, epoch) for epoch in range(num_epochs))
    return sum(plan.num_steps(per_step) for plan in plans)


def fit(
    engine: TrainingEngine,
    data: TrainingData,
    config: Config,
    progress: Progress,
    saver: Saver,
    log: RunLog,
    world: World,
    validate: Validate | None,
    stops: StopRequests,
) -> Progress:
    """Trains from `progress` to the last epoch's end, or to an early stop; returns where it ended.

    All ranks run it in step. They meet in each step's reductions, in validation and in the gathering of
    a checkpoint; rank 0 alone writes. Raises `Preempted`, on all ranks, once a stop that any of them was asked
    for is saved.
    """
    training = config.training
    per_step = saver.identity.micro_batches_per_step
    warmup_questions = training.warmup_steps * _questions_per_step(data.table, config, per_step)
    total_questions = training.num_epochs * len(data.table)
    skipped_before_start = progress.skipped_steps
    clock = StepClock()
    own_time = OwnTime(world.device)
    stragglers = Stragglers(world)
    window_loss = torch.zeros((), device=world.device)
    window_tokens = torch.zeros((), device=world.device)

    while True:
        # An epoch's last step is saved at the bottom of this loop, with its validation due, and validated here: so a
        # run that ends in between, or in the validation, does that first when it is resumed.
        if progress.validation_due:
            with clock.paused():
                score = None if validate is None else validate(progress.step)
                if score is None and validate is not None:
                    stops.check(world, saver.run_dir, progress.step)
                progress = _after_validation(progress, score)
                saver.save_score(engine, progress)
                stops.has_gained = True
        if progress.epoch == training.num_epochs or _stops_early(progress, config):
            return progress
        plan = plan_epoch(data.table.painting_of_row, training.batch_size, training.seed, progress.epoch)
        epoch_steps = plan.num_steps(per_step)
        first_step = plan.step_at_groups(progress.groups_consumed, per_step)
        seen_before_epoch = progress.questions_seen - plan.questions_before_step(first_step, per_step)
        batches_of_steps = training_loader(
            data.table, data.tokenized, plan, data.paintings, first_step, per_step, engine.accumulation,
            world.rank, world.size, data.workers,
            pin_memory=world.device.type == "cuda", packing=data.packing,
        )  # fmt: skip
        for epoch_step, batches in enumerate(own_time.waits_for(clock.waiting_for(batches_of_steps)), start=first_step):
            questions_after = seen_before_epoch + plan.questions_before_step(epoch_step + 1, per_step)
            lr = learning_rate(
                training.learning_rate, progress.questions_seen, questions_after, warmup_questions, total_questions
            )
            seed_step(training.seed, progress.step, world.rank)
            report = train_step(engine, batches, lr, world, own_time, stops.reason is not None)
            window_loss += report.loss_sum
            window_tokens += report.answer_tokens

            is_epoch_end = epoch_step + 1 == epoch_steps
            groups_after = plan.groups_before_step(epoch_step + 1, per_step)
            progress = _after_step(
                progress, is_epoch_end, groups_after, questions_after, skipped_before_start + engine.skipped_steps,
                validates=validate is not None,
            )  # fmt: skip
            clock.step_done(
                questions=questions_after - seen_before_epoch - plan.questions_before_step(epoch_step, per_step),
                paintings=groups_after - plan.groups_before_step(epoch_step, per_step),
            )
            log.advance()
            stops.has_gained = True

            gives_up = progress.nonfinite_steps_in_a_row >= training.max_nonfinite_steps
            is_stopped = report.stop_votes.read() > 0
            if progress.step % config.run.log_every == 0 or is_epoch_end or gives_up or is_stopped:
                # The one place between steps where ranks meet and the host waits for the device.
                own_seconds, note = stragglers.compare(own_time.read())
                if note is not None:
                    log.note(f"step {progress.step}: {note}")
                metrics = {
                    "loss": world.all_reduce_sum(window_loss) / window_tokens,
                    "learning_rate": lr,
                    "grad_norm": engine.grad_norm(),
                    "epoch": seen_before_epoch / len(data.table)
                    + plan.questions_before_step(epoch_step + 1, per_step) / len(data.table),
                    "questions_seen": float(progress.questions_seen),
                    "skipped_steps": float(progress.skipped_steps),
                    "peak_device_bytes": float(peak_device_bytes()),
                    "peak_host_bytes": float(peak_host_bytes()),
                    **clock.read(),
                    **own_seconds,
                }
                log.train(progress.step, metrics)
                window_loss, window_tokens = torch.zeros_like(window_loss), torch.zeros_like(window_tokens)
            if gives_up:
                raise RunFailed(
                    f"step {progress.step}: loss or gradient was not finite in "
                    f"{progress.nonfinite_steps_in_a_row} steps in a row; lower training.learning_rate, or look at "
                    "the loss in metrics.jsonl; the checkpoints before this are good"
                )
            with clock.paused():
                if is_epoch_end or is_stopped or progress.step % config.run.checkpoint_every == 0:
                    saver.save(engine, progress)
            is_done = progress.epoch == training.num_epochs and not progress.validation_due
            if is_stopped and not is_done:
                stops.check(world, saver.run_dir, progress.step)


def learning_rate(
    peak: float, questions_before: int, questions_after: int, warmup_questions: int, total_questions: int
) -> float:
    """Linear warm-up to `peak`, then linear decay to 0, for the step that sees the questions between.

    The warm-up takes the count after the step and the decay the count before it, so the first step moves
    and the last one does too. With steps of equal size this is transformers'
    `get_linear_schedule_with_warmup`, one step ahead while warming up. Counting questions and not steps
    keeps the schedule when batches are packed or the number of ranks changes.
    """
    if questions_after <= warmup_questions:
        return peak * questions_after / warmup_questions
    decaying = max(1, total_questions - warmup_questions)
    return peak * min(1.0, max(0, total_questions - questions_before) / decaying)


def _questions_per_step(table: QuestionTable, config: Config, per_step: int) -> int:
    """What an average step sees: paintings stay together, so most micro-batches are not quite full."""
    plan = plan_epoch(table.painting_of_row, config.training.batch_size, config.training.seed, epoch=0)
    return round(len(table) / plan.num_steps(per_step))


def _after_step(
    progress: Progress, is_epoch_end: bool, groups_after: int, questions_after: int, skipped: int, validates: bool
) -> Progress:
    """Where a run stands after one step more. groups_after: of the epoch; the others count over the whole run."""
    return replace(
        progress,
        step=progress.step + 1,
        epoch=progress.epoch + is_epoch_end,
        groups_consumed=0 if is_epoch_end else groups_after,
        questions_seen=questions_after,
        skipped_steps=skipped,
        validation_due=is_epoch_end and validates,
        nonfinite_steps_in_a_row=progress.nonfinite_steps_in_a_row + 1 if skipped > progress.skipped_steps else 0,
    )


def _after_validation(progress: Progress, score: float | None) -> Progress:
    """Where a run stands after the validation that was due; score: None where none is wanted any more."""
    progress = replace(progress, validation_due=False)
    if score is None:
        return progress
    if progress.best_exact_match is None or score > progress.best_exact_match:
        return replace(progress, best_exact_match=score, best_step=progress.step, epochs_without_improvement=0)
    return replace(progress, epochs_without_improvement=progress.epochs_without_improvement + 1)


def _stops_early(progress: Progress, config: Config) -> bool:
    patience = config.training.early_stopping_patience
    return patience is not None and progress.epochs_without_improvement >= patience
