"""How many questions fit: the arithmetic, and that ranks agree."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from artkv.batch import PaintingViews
from artkv.datasets.order import plan_evaluation
from artkv.distributed import World
from artkv.evaluation import batch_size
from artkv.evaluation.batch_size import (
    MOST_QUESTIONS,
    QUESTIONS_ON_A_CPU,
    MeanQuestion,
    automatic_batch_size,
    even_batch_size,
    question_bytes,
    questions_that_fit,
)
from tests.feature_cache.conftest import ThreadWorld, on_ranks

GIB = 2**30


def opt_model(dtype: torch.dtype = torch.bfloat16, **changes: int) -> Any:
    """BLIP-2 OPT-2.7b's numbers."""
    opt = {"num_hidden_layers": 32, "hidden_size": 2560, "ffn_dim": 10240, "vocab_size": 50304} | changes
    backbone = SimpleNamespace(
        max_positions=2048,
        dtype=dtype,
        language_model=SimpleNamespace(config=SimpleNamespace(**opt)),
    )
    return SimpleNamespace(backbone=backbone, num_visual_tokens=32)


SIX_A_PAINTING = MeanQuestion(prompt_tokens=15, paintings=1 / 6)


def test_keys_and_values_are_nearly_all_of_a_question() -> None:
    # A sixth of 32 visual tokens, 15 of the prompt, 16 new ones: each 2 x 32 x 2560 numbers in bf16.
    keys_and_values = (32 / 6 + 31) * 2 * 32 * 2560 * 2
    size = question_bytes(opt_model(), SIX_A_PAINTING, max_new_tokens=100, painting_bytes=0)
    assert keys_and_values < size < 1.3 * keys_and_values
    assert question_bytes(opt_model(torch.float32), SIX_A_PAINTING, 100, 0) == pytest.approx(2 * size, abs=2)
    assert question_bytes(opt_model(), SIX_A_PAINTING, 100, 6 * 10**6) == pytest.approx(size + 10**6, abs=1)


def test_a_question_of_an_h200s_run_took_less() -> None:
    """480 questions, six a painting, 16 tokens each: a peak of 6.2 GB streamed, 0.85 of it weights and slots."""
    size = question_bytes(opt_model(), SIX_A_PAINTING, 16, 1_000_000)
    assert 11.1e6 < size < 1.4 * 11.1e6


def test_long_answers_are_not_waited_for() -> None:
    assert question_bytes(opt_model(), SIX_A_PAINTING, 16, 0) == question_bytes(opt_model(), SIX_A_PAINTING, 5000, 0)
    assert question_bytes(opt_model(), SIX_A_PAINTING, 8, 0) < question_bytes(opt_model(), SIX_A_PAINTING, 9, 0)


@pytest.mark.parametrize(("free_gib", "least", "most"), [(6, 280, 360), (24, 1100, 1400), (70, 2048, 2048), (0, 1, 1)])
def test_what_fits_into_cards_of_usual_sizes(free_gib: int, least: int, most: int) -> None:
    size = question_bytes(opt_model(), SIX_A_PAINTING, 100, 2_000_000)
    assert least <= questions_that_fit(free_gib * GIB, size) <= most
    assert questions_that_fit(1000 * GIB, size) == MOST_QUESTIONS


class Table:
    def __init__(self, painting_of_row: list[int]) -> None:
        self.painting_of_row = np.array(painting_of_row)
        self.num_paintings = len(set(painting_of_row))

    def __len__(self) -> int:
        return len(self.painting_of_row)


def question_set(painting_of_row: list[int]) -> Any:
    return SimpleNamespace(
        table=Table(painting_of_row),
        tokenized=SimpleNamespace(prompt_lengths=np.array([9, 15])),
        paintings=SimpleNamespace(
            load_blank=lambda number, pin_memory: PaintingViews(
                torch.zeros(number, 400), (torch.zeros(number, 500), torch.zeros(number, 100))
            )
        ),
    )


def test_ranks_take_what_the_fullest_of_them_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would share out other batches each, and meet at other questions."""
    questions = question_set(list(range(10_000)))
    size = question_bytes(opt_model(), MeanQuestion(12, 1), 100, 4000)
    fitting = questions_that_fit(10 * GIB, size)
    assert fitting < questions_that_fit(30 * GIB, size)
    free = {0: 30 * GIB, 1: 10 * GIB}

    def on_rank(world: ThreadWorld) -> int:
        object.__setattr__(world, "device", torch.device("cuda", world.rank))
        return automatic_batch_size(opt_model(), questions, 100, 4, world)

    monkeypatch.setattr(batch_size, "free_device_bytes", lambda device: free[device.index])
    first, second = on_ranks(2, on_rank)
    assert first == second
    assert 0.9 * fitting // 4 < first <= fitting // 4


def test_a_batchs_pictures_are_not_too_many_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1.7 MB each, one a question, half a GiB; ablations share them."""
    questions = question_set(list(range(10_000)))
    questions.paintings.load_blank = lambda number, pin_memory: PaintingViews(torch.zeros(number, 425_000))
    monkeypatch.setattr(batch_size, "free_device_bytes", lambda device: 1000 * GIB)
    world = World(0, 0, 1, torch.device("cuda", 0))
    found = [automatic_batch_size(opt_model(), questions, 100, ablations, world) for ablations in (1, 4)]
    assert found == pytest.approx([GIB / 2 / 1.7e6, GIB / 2 / 1.7e6], rel=0.03)


def test_a_cpu_gets_a_stated_number() -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    questions = question_set(list(range(1280)))
    assert automatic_batch_size(opt_model(), questions, 100, 1, world) == QUESTIONS_ON_A_CPU
    assert automatic_batch_size(opt_model(), questions, 100, 4, world) == QUESTIONS_ON_A_CPU // 4
    assert automatic_batch_size(opt_model(), question_set([0, 1]), 100, 200, world) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_rank_is_idle_in_the_last_round(seed: int) -> None:
    """As many batches as rounds times ranks or fewer, and none of them above what fits."""
    rng = np.random.default_rng(seed)
    painting_of_row = np.repeat(np.arange(200), rng.integers(1, 9, 200))
    most, ranks = int(rng.integers(20, 700)), int(rng.integers(1, 9))
    size = even_batch_size(most, painting_of_row, ranks)
    assert size <= most
    plan = plan_evaluation(painting_of_row, size)
    rounds = -(-len(painting_of_row) // (most * ranks))
    if size < most:
        assert plan.num_micro_batches <= rounds * ranks
    # Of the eight questions that a painting may have, a batch has at most seven more than its even share.
    assert size <= -(-len(painting_of_row) // (rounds * ranks)) + 7
