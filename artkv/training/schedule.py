"""How many steps a run takes, and how many of them warm it up."""

from artkv.config import Config, TrainingConfig
from artkv.datasets.order import plan_epoch
from artkv.datasets.table import QuestionTable
from artkv.errors import UserError

# RoBERTa's fine-tuning (Liu et al., 2019, arXiv:1907.11692, table 10), which decays linearly as artkv does.
WARMUP_SHARE = 0.06
MOST_WARMUP_STEPS = 500


def total_steps(table: QuestionTable, config: Config, per_step: int) -> int:
    """Optimizer steps of the whole run; epochs differ by a few, as paintings fill micro-batches differently.

    per_step: micro-batches of a step, those of all ranks.
    """
    training = config.training
    plans = (
        plan_epoch(table.painting_of_row, training.batch_size, training.seed, epoch)
        for epoch in range(training.num_epochs)
    )
    return sum(plan.num_steps(per_step) for plan in plans)


def warmup_steps(training: TrainingConfig, steps: int) -> int:
    """Steps of the warm-up in a run of so many; `UserError` for a number that leaves nothing after it."""
    if training.warmup_steps == "auto":
        return min(round(WARMUP_SHARE * steps), MOST_WARMUP_STEPS)
    if training.warmup_steps >= max(1, steps):
        told = "1 step" if steps == 1 else f"{steps} steps"
        raise UserError(
            f"training.warmup_steps = {training.warmup_steps}: the run has {told}, and its learning rate would never "
            f"stop rising; give fewer, such as {round(WARMUP_SHARE * steps)}, or auto",
            on_all_ranks=True,
        )
    return training.warmup_steps
