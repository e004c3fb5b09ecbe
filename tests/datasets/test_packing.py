"""Prefix trees, layouts and packed batches, by brute force."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from artkv.batch import PackedQuestions
from artkv.datasets.batches import training_loader
from artkv.datasets.order import plan_epoch
from artkv.datasets.packing import (
    PackedShape,
    PackingSettings,
    Piece,
    balance,
    choose_layout,
    cut_into_pieces,
    layout_cost,
    pack_questions,
    prefix_tree,
)
from artkv.datasets.table import QuestionTable
from artkv.distributed import single_process
from tests.datasets.test_batches import question_set
from tests.datasets.test_batches import table as table  # a fixture

NUM_VISUAL = 4
SETTINGS = PackingSettings(NUM_VISUAL, hidden_size=64)


def random_sequences(rng: random.Random, count: int) -> list[list[int]]:
    """Of few tokens, so that many begin alike, some are equal and some are the beginning of others."""
    return sorted([rng.randrange(3) for _ in range(rng.randrange(1, 7))] for _ in range(count))


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_holds_each_prefix_once_and_knows_its_ancestors(seed: int) -> None:
    rng = random.Random(seed)
    sequences = random_sequences(rng, rng.randrange(1, 12))
    tree = prefix_tree(sequences)
    prefixes = {tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)}
    assert len(tree.token_ids) == len(prefixes)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tree.token_ids[path].tolist() == sequence
        assert tree.depths[path].tolist() == list(range(len(sequence)))
        for node in path:
            # Ancestors by the rule of the mask are the nodes on the path, and no others.
            ancestors = [j for j in range(node + 1) if node < tree.ends[j]]
            assert ancestors == [n for n in path if n <= node]


def random_batch(rng: random.Random) -> tuple[list[list[int]], list[int]]:
    count = rng.randrange(1, 14)
    num_paintings = rng.randrange(1, count + 1)
    painting_index = [*range(num_paintings), *(rng.randrange(num_paintings) for _ in range(count - num_paintings))]
    texts = [[rng.randrange(3) for _ in range(rng.randrange(1, 20))] for _ in range(count)]
    return texts, painting_index


def layout_of(texts: list[list[int]], painting_index: list[int], settings: PackingSettings) -> list[list[Piece]]:
    """Of questions whose texts are `texts` up to the last answer token, which alone is predicted."""
    encoded = [([*text, 99], [-100] * len(text) + [99]) for text in texts]
    return choose_layout(cut_into_pieces(encoded, painting_index, settings), settings)


def check_layout(layout: list[list[Piece]], texts: list[list[int]], painting_index: list[int]) -> None:
    """Each question once, with its painting; columns are those of the true tree."""
    assert all(layout)
    questions = [question for row in layout for piece in row for question in piece.questions]
    assert sorted(questions) == list(range(len(texts)))
    for piece in (piece for row in layout for piece in row):
        assert {painting_index[question] for question in piece.questions} == {piece.painting}
        prefixes = {tuple(texts[q][:length]) for q in piece.questions for length in range(1, len(texts[q]) + 1)}
        assert piece.num_columns == NUM_VISUAL + len(prefixes)


def cost_of(layout: list[list[Piece]], hidden_size: int) -> float:
    return layout_cost(len(layout), max(sum(piece.num_columns for piece in row) for row in layout), hidden_size)


@pytest.mark.parametrize("seed", range(20))
def test_layouts_hold_each_question_once_and_cost_no_more_than_the_simple_ones(seed: int) -> None:
    texts, painting_index = random_batch(random.Random(seed))
    for hidden_size in (4, 64, 2560):
        layout = layout_of(texts, painting_index, PackingSettings(NUM_VISUAL, hidden_size))
        check_layout(layout, texts, painting_index)
        assert layout == layout_of(texts, painting_index, PackingSettings(NUM_VISUAL, hidden_size))
        lengths = []
        for painting in set(painting_index):
            own = [text for text, place in zip(texts, painting_index, strict=True) if place == painting]
            lengths.append(NUM_VISUAL + len(prefix_tree(sorted(own)).token_ids))
        best = cost_of(layout, hidden_size)
        assert best <= layout_cost(1, sum(lengths), hidden_size)  # all in one row
        assert best <= layout_cost(len(lengths), max(lengths), hidden_size)  # a row a painting


@pytest.mark.parametrize("max_columns", [1, 30, 60, 100])
def test_rows_keep_to_the_bound(max_columns: int) -> None:
    rng = random.Random(1)
    texts = [[rng.randrange(100) for _ in range(rng.randrange(5, 25))] for _ in range(12)]
    painting_index = [n // 8 for n in range(12)]
    settings = PackingSettings(NUM_VISUAL, 2560, max_columns)
    layout = layout_of(texts, painting_index, settings)
    check_layout(layout, texts, painting_index)
    longest_alone = NUM_VISUAL + max(map(len, texts))
    assert max(sum(piece.num_columns for piece in row) for row in layout) <= max(max_columns, longest_alone)


def test_balance_gives_the_longest_first_to_the_shortest_row() -> None:
    pieces = [Piece(n, (n,), length, 1) for n, length in enumerate([3, 9, 7, 4, 2])]
    rows = balance(pieces, 2)
    assert [[piece.num_columns for piece in row] for row in rows] == [[9, 3], [7, 4, 2]]


def test_packed_batch_by_hand() -> None:
    """Two questions `2 5 | 6 1` and `2 5 | 7 1` on painting 0, `2 | 8 1` on painting 1; 1 ends each and is not read."""
    encoded = [([2, 5, 6, 1], [-100, -100, 6, 1]), ([2, 8, 1], [-100, 8, 1]), ([2, 5, 7, 1], [-100, -100, 7, 1])]
    packed = pack_questions(encoded, [0, 1, 0], 1.0, pad_token_id=9, settings=PackingSettings(2, 10**6))
    assert packed.token_ids.tolist() == [[9, 9, 2, 5, 6, 7, 9, 9, 2, 8]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 0, 1, 2, 3]]
    assert packed.subtree_end.tolist() == [[6, 6, 6, 6, 5, 6, 10, 10, 10, 10]]
    assert packed.piece_places.tolist() == [0, 6]
    assert packed.piece_painting.tolist() == [0, 1]
    # After `2 5` both 6 and 7 are answers: one column, two tokens, and one column that is not needed.
    assert packed.answer_columns.tolist() == [[3, 4, 5, 8, 9, 0]]
    assert packed.answer_places.tolist() == [0, 1, 0, 2, 3, 4]
    assert packed.answer_ids.tolist() == [6, 1, 7, 1, 8, 1]
    assert packed.answer_weight.tolist() == [1.0] * 6


def test_padding_sees_itself_alone() -> None:
    encoded = [([2, 5, 6, 1], [-100, -100, 6, 1]), ([2, 8, 1], [-100, 8, 1])]
    packed = pack_questions(encoded, [0, 1], 0.0, pad_token_id=9, settings=PackingSettings(2, 1))
    assert packed.token_ids.tolist() == [[9, 9, 2, 5, 6], [9, 9, 2, 8, 9]]
    assert packed.subtree_end.tolist() == [[5] * 5, [4, 4, 4, 4, 5]]
    assert packed.answer_columns.tolist() == [[3, 4], [2, 3]]
    assert packed.answer_places.tolist() == [0, 1, 2, 3]
    assert packed.answer_token_count() == 0


def test_a_batch_is_padded_to_the_cheapest_shape_that_holds_it() -> None:
    encoded = [([2, 5, 6, 1], [-100, -100, 6, 1]), ([2, 8, 1], [-100, 8, 1])]
    own = pack_questions(encoded, [0, 1], 1.0, pad_token_id=9, settings=PackingSettings(2, 10**6))
    assert own.token_ids.shape == (1, 9)
    shapes = (PackedShape(1, 8, 16, 16), PackedShape(1, 12, 5, 6), PackedShape(1, 16, 4, 4), PackedShape(3, 9, 4, 4))
    packed = pack_questions(encoded, [0, 1], 1.0, 9, PackingSettings(2, 10**6, shapes=shapes))
    assert (*packed.token_ids.shape, packed.answer_columns.shape[1], len(packed.answer_ids)) == (1, 12, 5, 6)
    assert packed.token_ids[:, :9].equal(own.token_ids)
    assert packed.token_ids[0, 9:].tolist() == [9] * 3
    assert packed.subtree_end[0].tolist() == [*own.subtree_end[0].tolist(), 10, 11, 12]
    assert packed.answer_columns[0].tolist() == [*own.answer_columns[0].tolist(), 0]
    assert packed.answer_ids.tolist() == [*own.answer_ids.tolist(), 0, 0]
    assert packed.answer_weight.tolist() == [1.0] * 4 + [0.0] * 2
    assert packed.answer_token_count() == own.answer_token_count() == 4
    # None holds it: rounded up, so that other such batches have the same shape.
    packed = pack_questions(encoded, [0, 1], 1.0, 9, PackingSettings(2, 10**6, shapes=shapes[:1]))
    assert (*packed.token_ids.shape, packed.answer_columns.shape[1], len(packed.answer_ids)) == (1, 64, 64, 64)


def test_the_loader_packs_the_same_questions(table: QuestionTable, tiny_tokenizer: Any) -> None:
    plan = plan_epoch(table.painting_of_row, batch_size=6, seed=1, epoch=0)
    questions = question_set(table, tiny_tokenizer)

    def load(packing: PackingSettings | None) -> list[Any]:
        steps = training_loader(questions, plan, 0, 2, single_process(), workers=1, packing=packing)
        return [batch for step in steps for batch in step]

    plain, packed = load(None), load(SETTINGS)
    assert len(plain) == len(packed) > 2
    for one, other in zip(plain, packed, strict=True):
        assert one.rows == other.rows
        assert torch.equal(one.paintings.vit_pixels, other.paintings.vit_pixels)
        assert isinstance(other.questions, PackedQuestions)
        assert one.questions.answer_token_count() == other.questions.answer_token_count()
        answers = one.questions.labels[one.questions.labels != -100]
        assert torch.equal(answers.sort().values, other.questions.answer_ids.sort().values)
        assert set(other.questions.piece_painting.tolist()) == set(one.questions.painting_index.tolist())
        assert np.prod(other.questions.token_ids.shape) < len(one.questions) * (
            NUM_VISUAL + one.questions.input_ids.shape[1]
        )
    fillers = [batch for batch in packed if batch.questions.answer_token_count() == 0]
    assert len(fillers) <= 1
