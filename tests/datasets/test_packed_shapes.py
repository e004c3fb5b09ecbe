"""The shapes of an epoch's batches: how many, how much padding, by brute force and on distributions of data."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from artkv.datasets.order import plan_epoch
from artkv.datasets.packed_shapes import MOST_SHAPES, _group, plan_shapes
from artkv.datasets.packing import PackedShape, PackingSettings, pack_questions
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.tokenized_table import TokenizedTable

SETTINGS = PackingSettings(num_visual_tokens=32, hidden_size=2560)  # BLIP2-OPT-2.7b's
QUESTIONS_PER_PAINTING = {
    "one": lambda rng: 1,
    "six": lambda rng: 6,
    "few": lambda rng: int(rng.integers(1, 7)),
    "a long tail": lambda rng: int(min(40, rng.geometric(0.12))),
    "all": lambda rng: 10**6,  # of one painting
}
TEXT_TOKENS = {"short": 6, "long": 40}


def questions_of(per_painting: str, texts: str, count: int) -> QuestionSet:
    """Questions of 40 beginnings with endings of random length, and answers of one to some ten tokens."""
    rng = np.random.default_rng(0)
    stems = [rng.integers(3, 50000, rng.integers(2, 9)).tolist() for _ in range(40)]
    ids: list[int] = []
    prompt_lengths, lengths, painting_of_row = [], [], []
    painting, left = -1, 0
    for _ in range(count):
        if left == 0:
            painting, left = painting + 1, QUESTIONS_PER_PAINTING[per_painting](rng)
        left -= 1
        ending = rng.integers(3, 50000, rng.integers(0, TEXT_TOKENS[texts])).tolist()
        prompt = [2, 7, 8, *stems[rng.integers(40)], *ending, 9, 10]
        answer = [*rng.integers(3, 50000, rng.geometric(0.4)).tolist(), 5]
        ids += prompt + answer
        prompt_lengths.append(len(prompt))
        lengths.append(len(prompt) + len(answer))
        painting_of_row.append(painting)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokenized = TokenizedTable(np.array(ids, np.int32), offsets, offsets[:-1] + np.array(prompt_lengths), 1)
    table: Any = SimpleNamespace(painting_of_row=np.array(painting_of_row))
    return QuestionSet(table, tokenized, cast(Any, None))


def epoch_of(questions: QuestionSet, batch_size: int, epoch: int, settings: PackingSettings) -> tuple[list[Any], float]:
    """The shapes of an epoch's batches, and the share of padding in what OPT reads."""
    table, tokenized = questions.table, questions.tokenized
    plan = plan_epoch(table.painting_of_row, batch_size, 1, epoch)
    shapes, read, needed = [], 0, 0
    for number in range(plan.num_micro_batches):
        places: dict[int, int] = {}
        rows = plan[number].rows.tolist()
        painting_index = [places.setdefault(int(table.painting_of_row[row]), len(places)) for row in rows]
        encoded = [tokenized.for_training(row) for row in rows]
        packed = pack_questions(encoded, painting_index, 1.0, 1, settings)
        alone = packed.token_ids.shape
        shapes.append((*alone, packed.answer_columns.shape[1], len(packed.answer_ids)))
        read += packed.token_ids.numel()
        # Padding, and it alone, sees nothing but itself and is at position 0.
        columns = np.arange(alone[1])
        is_padding = (packed.subtree_end.numpy() == columns + 1) & (packed.position_ids.numpy() == 0)
        needed += packed.token_ids.numel() - int(is_padding.sum())
    return shapes, 1 - needed / read


@pytest.mark.parametrize("texts", TEXT_TOKENS)
@pytest.mark.parametrize("per_painting", QUESTIONS_PER_PAINTING)
def test_an_epoch_has_a_dozen_shapes_and_little_padding(per_painting: str, texts: str) -> None:
    """250 steps of 48 questions; 8% of padding is the bound, and the worst of these has 5%."""
    questions = questions_of(per_painting, texts, 250 * 48)
    plan = plan_epoch(questions.table.painting_of_row, 48, 1, epoch=0)
    settings = replace(SETTINGS, shapes=plan_shapes(questions, plan, SETTINGS))
    for epoch in (0, 3):  # the one that they were planned for, and another
        shapes, padding = epoch_of(questions, 48, epoch, settings)
        assert len(set(shapes)) <= 12
        assert padding <= 0.08
    unplanned, _ = epoch_of(questions, 48, 0, SETTINGS)
    assert len(set(unplanned)) > 3 * len(set(shapes))


def test_small_batches_have_few_shapes_too() -> None:
    questions = questions_of("few", "short", 250 * 8)
    plan = plan_epoch(questions.table.painting_of_row, 8, 1, epoch=0)
    shapes, padding = epoch_of(questions, 8, 0, replace(SETTINGS, shapes=plan_shapes(questions, plan, SETTINGS)))
    assert len(set(shapes)) <= 12
    assert padding <= 0.08


def test_the_planned_shapes_hold_every_batch_that_they_were_planned_by() -> None:
    questions = questions_of("a long tail", "short", 100 * 48)
    plan = plan_epoch(questions.table.painting_of_row, 48, 1, epoch=0)
    shapes = plan_shapes(questions, plan, SETTINGS)
    assert len(shapes) <= MOST_SHAPES
    assert shapes == plan_shapes(questions, plan, SETTINGS)
    assert all(isinstance(shape, PackedShape) and shape.columns % 8 == 0 for shape in shapes)
    used, _ = epoch_of(questions, 48, 0, replace(SETTINGS, shapes=shapes))
    assert set(used) <= set(shapes)


def test_groups_are_those_with_least_padding() -> None:
    rng = np.random.default_rng(0)
    for count, most in itertools.product(range(1, 9), range(1, 5)):
        sizes = np.sort(rng.integers(1, 50, count))

        def padding(ends: tuple[int, ...], sizes: np.ndarray = sizes) -> int:
            runs = zip((0, *ends), (*ends, len(sizes)), strict=True)
            return sum(int((sizes[end - 1] - sizes[first:end]).sum()) for first, end in runs)

        cuts = (cut for n in range(min(most, count)) for cut in itertools.combinations(range(1, count), n))
        groups = _group(sizes.tolist(), most)
        assert [first for first, _ in groups] == [0, *(end for _, end in groups[:-1])]
        assert groups[-1][1] == count
        assert len(groups) <= most
        assert padding(tuple(end for _, end in groups[:-1])) == min(map(padding, cuts))
