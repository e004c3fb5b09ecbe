"""Finds questions that are longer than the language model's positions, before they reach it."""

from artkv.datasets.records import Problem
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import IGNORED_LABEL, Tokenizer, encode_for_training
from artkv.errors import UserError


def too_long_questions(
    table: QuestionTable,
    tokenizer: Tokenizer,
    prompt: str,
    num_visual_tokens: int,
    max_new_tokens: int,
    most_positions: int,
) -> list[Problem]:
    """A problem for each row whose visual tokens, question and answer do not fit, or that cannot be tokenised.

    The answer counts as the longer of the row's own and `max_new_tokens`. On a GPU a position too many is
    an assertion inside a kernel that names nothing.
    """
    problems = []
    for row in range(len(table)):
        line = int(table.line_numbers[row])
        try:
            ids, labels = encode_for_training(tokenizer, prompt, table.questions[row], table.answers[row])
        except UserError as error:
            problems.append(Problem(table.path, line, str(error)))
            continue
        needed = num_visual_tokens + max(len(ids), labels.count(IGNORED_LABEL) + max_new_tokens)
        if needed > most_positions:
            message = f"the row needs {needed} positions, the language model has {most_positions}; shorten its texts"
            problems.append(Problem(table.path, line, message))
    return problems
