"""The training loop: one linear function, from the first step to the last."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from artkv.batch import Batch
from artkv.config import Config
from artkv.datasets.batches import training_loader
from artkv.datasets.order import plan_epoch
from artkv.datasets.table import QuestionTable
from artkv.distributed import ToHost, World
from artkv.errors import RunFailed
from artkv.monitoring.run_log import RunLog
from artkv.run_folder.state import Progress
from artkv.session import Session
from artkv.training.engine import TrainingEngine
from artkv.training.measures import StepMeasures
from artkv.training.placing import packing_of
from artkv.training.saving import Saver
from artkv.training.schedule import total_steps, warmup_steps
from artkv.training.skipped_steps import SkippedSteps
from artkv.training.step import answer_token_count, seed_step, train_step
from artkv.training.stops import RunStops

# Scores a validation: called with the steps done, on all ranks; returns the exact match, None if it was broken off.
Validate = Callable[[int], float | None]


class StepReport(NamedTuple):
    """What a step says of itself, on the device.

    loss_sum: this rank's summed token losses. answer_tokens: all ranks' and micro-steps' answer tokens.
    stop_votes: how many ranks asked to stop when it began.
    """

    loss_sum: Tensor
    answer_tokens: Tensor
    stop_votes: ToHost


def fit(
    session: Session,
    engine: TrainingEngine,
    progress: Progress,
    saver: Saver,
    log: RunLog,
    stops: RunStops,
    validate: Validate | None,
) -> Progress:
    """Trains from `progress` to the last epoch's end, or to an early stop; returns where it ended.

    All ranks run it in step. They meet in each step's reductions, in validation and in the gathering of
    a checkpoint; rank 0 alone writes. Raises `Preempted`, on all ranks, once a stop that any of them was asked
    for is saved.
    """
    config, world, questions = session.config, session.world, session.questions["train"]
    training, table = config.training, questions.table
    per_step = engine.accumulation * world.size
    warmup_questions = _warmup_questions(table, config, per_step)
    total_questions = training.num_epochs * len(table)
    engine.skipped_steps.start_from(progress.skipped_steps, progress.nonfinite_steps_in_a_row)
    if progress.step == 0:
        _score(validate, 0, stops)  # of the weights that training starts from: it is logged, and chooses nothing
    measures, packing = StepMeasures(engine, world), packing_of(session)

    while True:  # a turn is the validation that is due, and then an epoch
        # An epoch's last step is saved at the bottom of this loop, with its validation due, and validated here: so a
        # run that ends in between, or in the validation, does that first when it is resumed.
        if progress.validation_due:
            with measures.paused(), stops.during("saving"):
                progress = _after_validation(progress, _score(validate, progress.step, stops))
                saver.save_score(engine, progress)
                stops.note_gain()
        if is_finished(progress, config):
            return progress
        plan = plan_epoch(table.painting_of_row, training.batch_size, training.seed, progress.epoch)
        first_step = plan.step_at_groups(progress.groups_consumed, per_step)
        seen_before_epoch = progress.questions_seen - plan.questions_before_step(first_step, per_step)
        batches_of_steps = training_loader(
            questions, plan, first_step, engine.accumulation, world, config.dataset.workers, packing
        )
        for epoch_step, batches in enumerate(measures.waits_for(batches_of_steps), start=first_step):
            questions_after = seen_before_epoch + plan.questions_before_step(epoch_step + 1, per_step)
            groups_after = plan.groups_before_step(epoch_step + 1, per_step)
            lr = learning_rate(
                training.learning_rate, progress.questions_seen, questions_after, warmup_questions, total_questions
            )
            is_epoch_end = epoch_step + 1 == plan.num_steps(per_step)
            is_logged = (progress.step + 1) % config.run.log_every == 0 or is_epoch_end
            measures.taken_after_next_step(is_logged)
            seed_step(training.seed, progress.step, world.rank)
            report = step_together(engine, batches, lr, stops, world)
            measures.step_done(
                report.loss_sum,
                report.answer_tokens,
                questions=questions_after - progress.questions_seen,
                paintings=groups_after - plan.groups_before_step(epoch_step, per_step),
            )
            progress = _after_step(progress, is_epoch_end, groups_after, questions_after, validate is not None)
            log.advance()
            stops.note_gain(progress.step)

            is_stopped = report.stop_votes.read()[0] > 0
            log.write_pending()  # what the step before measured was queued before these votes: it is there
            is_due = progress.step % config.run.checkpoint_every == 0 or is_epoch_end or is_stopped
            is_saved = saver.is_overdue(progress.step) or is_due
            progress, divergence = _with_skipped(progress, engine.skipped_steps, is_saved, training.max_nonfinite_steps)
            if is_logged or is_stopped or divergence is not None:
                # Ranks meet here on the device. Hosts wait for it, and meet, only to save and to validate.
                log.train_once_there(progress.step, measures.take(lr, progress, questions_after / len(table)))
            if divergence is not None:
                raise divergence
            if is_saved:
                log.write_pending()  # a run that goes on from here lacks no line
                with measures.paused(), stops.during("saving"):
                    saver.save(engine, progress)
            if is_stopped and (progress.validation_due or progress.epoch < training.num_epochs):  # else it is done
                stops.stop_if_asked()


def step_together(
    engine: TrainingEngine, batches: Sequence[Batch], learning_rate: float, stops: RunStops, world: World
) -> StepReport:
    """One optimizer step of all ranks, each on its own batches.

    They meet twice: in the count of answer tokens, with which their votes to stop travel, and in DeepSpeed's
    reductions.
    """
    on_device = [batch.to(world.device, non_blocking=True) for batch in batches]
    answer_tokens, stop_votes = stops.meet(answer_token_count(on_device))
    loss_sum = train_step(engine, on_device, learning_rate, answer_tokens, world.size)
    return StepReport(loss_sum, answer_tokens, stop_votes)


def is_finished(progress: Progress, config: Config) -> bool:
    """Whether nothing is left to train, whatever validation is still due: the last epoch is over, or patience."""
    patience = config.training.early_stopping_patience
    is_early = patience is not None and progress.epochs_without_improvement >= patience
    return is_early or progress.epoch >= config.training.num_epochs  # which may have been lowered since


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


def _score(validate: Validate | None, step: int, stops: RunStops) -> float | None:
    """The exact match of a validation, or None where none is wanted; where it was broken off, all ranks stop."""
    with stops.during("validating"):
        score = None if validate is None else validate(step)
    if score is None and validate is not None:
        stops.stop_if_asked()  # and it was: that is why there is no score
    return score


def _warmup_questions(table: QuestionTable, config: Config, per_step: int) -> int:
    """What the warm-up's steps see on average: paintings stay together, so most micro-batches are not quite full."""
    steps = warmup_steps(config.training, total_steps(table, config, per_step))
    plan = plan_epoch(table.painting_of_row, config.training.batch_size, config.training.seed, epoch=0)
    return steps * round(len(table) / plan.num_steps(per_step))


def _after_step(
    progress: Progress, is_epoch_end: bool, groups_after: int, questions_after: int, validates: bool
) -> Progress:
    """Where a run stands after one step more, but for what was skipped.

    groups_after: of the epoch. questions_after: of the whole run.
    """
    return replace(
        progress,
        step=progress.step + 1,
        epoch=progress.epoch + is_epoch_end,
        groups_consumed=0 if is_epoch_end else groups_after,
        questions_seen=questions_after,
        validation_due=is_epoch_end and validates,
    )


def _with_skipped(
    progress: Progress, skipped_steps: SkippedSteps, waits: bool, max_nonfinite_steps: int
) -> tuple[Progress, RunFailed | None]:
    """Where a run stands with what was skipped, and what ends it if that is too much.

    waits: for the device to be done with the last step, for a checkpoint's sake; else what was skipped before that.
    """
    for is_counted in (False, True) if waits else (False,):
        skipped, in_a_row = skipped_steps.counts(waits=is_counted)
        progress = replace(progress, skipped_steps=skipped, nonfinite_steps_in_a_row=in_a_row)
        if in_a_row >= max_nonfinite_steps:
            return progress, RunFailed(
                f"step {progress.step - (not is_counted)}: loss or gradient was not finite in {in_a_row} steps in a "
                "row; lower training.learning_rate, or look at the loss in metrics.jsonl; the checkpoints before this "
                "are good"
            )
    return progress, None


def _after_validation(progress: Progress, score: float | None) -> Progress:
    """Where a run stands after the validation that was due; score: None where none is wanted any more."""
    progress = replace(progress, validation_due=False)
    if score is None:
        return progress
    if progress.best_exact_match is None or score > progress.best_exact_match:
        return replace(progress, best_exact_match=score, best_step=progress.step, epochs_without_improvement=0)
    return replace(progress, epochs_without_improvement=progress.epochs_without_improvement + 1)
