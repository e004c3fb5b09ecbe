"""Packed prompts by brute force: whom each prompt's end sees, and where its answer begins."""

import random

import numpy as np
import pytest

from artkv.batch import PackedPrompts
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts

NUM_VISUAL, PAD = 4, 9
SETTINGS = PackingSettings(NUM_VISUAL, hidden_size=64)


def random_batch(rng: random.Random, most: int = 14) -> tuple[list[list[int]], list[int]]:
    """Prompts of few tokens, many of which begin alike or are equal; the first painting may have none."""
    count = rng.randrange(1, most)
    prompts = [[rng.randrange(3) for _ in range(rng.randrange(1, 8))] for _ in range(count)]
    return prompts, [rng.randrange(1, count + 1) for _ in range(count)]


def sequence_at(packed: PackedPrompts, row: int, column: int) -> tuple[int, list[int]]:
    """The painting and the text that a column attends to, itself included, by the rule of the mask."""
    ends = packed.subtree_end[row].tolist()
    seen = [j for j in range(column + 1) if column < ends[j]]
    assert packed.position_ids[row, seen].tolist() == list(range(len(seen)))
    assert seen[:NUM_VISUAL] == list(range(seen[0], seen[0] + NUM_VISUAL))
    piece = packed.piece_places.tolist().index(row * packed.token_ids.shape[1] + seen[0])
    return int(packed.piece_painting[piece]), packed.token_ids[row, seen[NUM_VISUAL:]].tolist()


@pytest.mark.parametrize("max_columns", [4096, 12])
@pytest.mark.parametrize("seed", range(20))
def test_each_prompts_end_sees_its_painting_and_its_text(seed: int, max_columns: int) -> None:
    prompts, painting_index = random_batch(random.Random(seed))
    settings = PackingSettings(NUM_VISUAL, hidden_size=64, max_columns=max_columns)
    packed = pack_prompts(prompts, painting_index, PAD, settings)
    num_slots = packed.last_columns.shape[1]
    assert len(packed) == len(prompts)
    for place, prompt, painting in zip(packed.places.tolist(), prompts, painting_index, strict=True):
        row, slot = divmod(place, num_slots)
        assert packed.is_asked[row, slot]
        assert sequence_at(packed, row, int(packed.last_columns[row, slot])) == (painting, prompt)
    distinct = {(painting, tuple(prompt)) for painting, prompt in zip(painting_index, prompts, strict=True)}
    assert packed.is_asked.sum() == len(distinct) == len(set(packed.places.tolist()))
    assert packed.token_ids.shape[1] <= max(max_columns, NUM_VISUAL + max(map(len, prompts)))
    # Who asks nothing looks at a column that is there.
    assert not packed.last_columns[~packed.is_asked].any()


def test_padding_sees_itself() -> None:
    packed = pack_prompts([[0, 1, 2, 0, 1], [0]], [0, 1], PAD, PackingSettings(NUM_VISUAL, hidden_size=1))
    assert packed.token_ids.shape[0] == 2  # in so narrow a model a row each, so one is padded
    row, column = np.argwhere(packed.token_ids.numpy() == PAD)[-1]
    assert packed.subtree_end[row, column] == column + 1


def test_equal_prompts_on_two_paintings_are_two() -> None:
    packed = pack_prompts([[0, 1], [0, 1], [0, 1]], [0, 1, 0], PAD, SETTINGS)
    assert packed.is_asked.sum() == 2
    assert packed.places[0] == packed.places[2] != packed.places[1]


def test_shared_beginnings_are_computed_once() -> None:
    """Six questions on each of 20 paintings, as ArtQuest's: less than half the columns of a row a question."""
    begin = list(range(100, 105))
    prompts = [[*begin, *range(200 + 10 * n, 206 + 10 * n)] for _ in range(20) for n in range(6)]
    painting_index = [painting for painting in range(20) for _ in range(6)]
    packed = pack_prompts(prompts, painting_index, PAD, PackingSettings(32, hidden_size=2560))
    assert packed.token_ids.numel() <= 20 * (32 + 5 + 6 * 6)
    assert packed.token_ids.numel() < 0.3 * len(prompts) * (32 + 11)


def test_many_questions_on_one_painting_are_cut_where_it_pays() -> None:
    """One row of thousands of columns costs more attention than its visual tokens once more."""
    prompts = [[0, *range(10 * n + 1, 10 * n + 11)] for n in range(200)]
    packed = pack_prompts(prompts, [0] * 200, PAD, PackingSettings(16, hidden_size=128))
    assert len(packed.piece_places) > 1
    assert packed.token_ids.shape[1] < 1100
