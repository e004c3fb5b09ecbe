"""Packed answers by brute force: each token is predicted where its prompt and what came before it are seen alone."""

import random

import numpy as np
import pytest

from artkv.batch import PackedChoices
from artkv.datasets.choice_packing import PossibleAnswer, RowChoices, pack_choices
from artkv.datasets.packing import PackingSettings
from tests.datasets.test_prompt_packing import NUM_VISUAL, PAD, sequence_at

NEWLINE = 8
HOSTILE = [(1, 2, NEWLINE), (1, 2, 0, NEWLINE), (1, NEWLINE), (1, 2, 2, NEWLINE), (NEWLINE,), (1, 2, NEWLINE)]


def predicted_by(packed: PackedChoices) -> list[list[tuple[int, list[int], int]]]:
    """Of each answer's tokens, in the order in which they are seen: painting, text before it, id."""
    width = packed.answer_columns.shape[1]
    answers: list[list[tuple[int, list[int], int]]] = [[] for _ in range(packed.num_answers)]
    tokens = zip(packed.answer_places.tolist(), packed.answer_ids.tolist(), packed.answer_owners.tolist(), strict=True)
    for place, token, owner in tokens:
        row, slot = divmod(place, width)
        painting, text = sequence_at(packed, row, int(packed.answer_columns[row, slot]))
        answers[owner].append((painting, text, token))
    return [sorted(answer, key=lambda one: len(one[1])) for answer in answers]


def expected_of(answers: list[PossibleAnswer]) -> list[list[tuple[int, list[int], int]]]:
    return [
        [(painting, [*prompt, *answer[:length]], token) for length, token in enumerate(answer)]
        for painting, prompt, answer in answers
    ]


@pytest.mark.parametrize("max_columns", [4096, 12])
@pytest.mark.parametrize("seed", range(12))
def test_each_token_is_predicted_behind_its_prompt_and_what_is_before_it(seed: int, max_columns: int) -> None:
    rng = random.Random(seed)
    answers = [
        PossibleAnswer(
            rng.randrange(1, 4),
            tuple(rng.randrange(2) for _ in range(rng.randrange(1, 6))),
            (*(rng.randrange(3) for _ in range(rng.randrange(4))), NEWLINE),
        )
        for _ in range(rng.randrange(1, 30))
    ]
    packed = pack_choices(answers, PAD, PackingSettings(NUM_VISUAL, hidden_size=64, max_columns=max_columns))
    assert predicted_by(packed) == expected_of(answers)
    longest = max(len(answer.text) for answer in answers)
    assert packed.token_ids.shape[1] <= max(max_columns, NUM_VISUAL + longest)


def test_answers_that_begin_alike_that_are_others_beginnings_or_twice_there() -> None:
    answers = [PossibleAnswer(0, (5, 6), answer) for answer in HOSTILE]
    packed = pack_choices(answers, PAD, PackingSettings(NUM_VISUAL, hidden_size=2560))
    assert predicted_by(packed) == expected_of(answers)
    # One row: visual tokens, the prompt, and 1, 1 2, 1 2 0, 1 2 2. Each column that predicts is there once.
    assert packed.token_ids.shape == (1, NUM_VISUAL + 2 + 4)
    assert packed.answer_columns.shape == (1, 5)


def test_a_questions_answers_share_its_prompt_and_its_painting() -> None:
    """Thirty answers of three tokens to six questions on each of 8 paintings: a tenth of the columns of a row each."""
    prompts = [(*range(100, 105), *range(200 + 10 * n, 206 + 10 * n)) for n in range(6)]
    answers = [
        PossibleAnswer(painting, prompt, (300 + number, 400 + number, NEWLINE))
        for painting in range(8)
        for prompt in prompts
        for number in range(30)
    ]
    packed = pack_choices(answers, PAD, PackingSettings(32, hidden_size=2560))
    assert packed.token_ids.numel() < 0.1 * sum(32 + len(answer.text) for answer in answers)


def test_a_question_has_its_types_answers_or_none() -> None:
    choices = RowChoices((((1, NEWLINE),), ((2, NEWLINE), (3, NEWLINE))), np.array([1, -1, 0]))
    assert [choices.of_row(row) for row in range(3)] == [((2, NEWLINE), (3, NEWLINE)), (), ((1, NEWLINE),)]
