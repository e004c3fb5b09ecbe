"""The learning rate as a function of the questions seen."""


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
