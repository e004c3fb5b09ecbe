"""Ranks that answer a table together, and stop together where one of them is asked to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import artkv.evaluation.answering as answering
from artkv.batch import QuestionBatch
from artkv.config import Config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.painting_source import DecodedPictures
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import QuestionTable, read_table
from artkv.datasets.tokenized_table import tokenize_table
from artkv.distributed import World
from artkv.evaluation.answering import AnsweringSettings, GaveUp, answer_questions
from tests.feature_cache.conftest import on_ranks

PROMPT = "Question: {question} Short answer:"
SETTINGS = AnsweringSettings(batch_size=1, max_new_tokens=3, workers=1, seed=0)


class Model:
    """Answers with the number of a question's tokens."""

    def encode(self, shown: Any) -> None:
        return None

    def visual_tokens(self, features: None, use_prefix: bool) -> None:
        return None

    def generate_answers(self, visual_tokens: None, questions: QuestionBatch, max_new_tokens: int) -> list[str]:
        return [str(int(row.sum())) for row in questions.attention_mask]


def transform(picture: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)


@pytest.fixture
def answer(tiny_config: Config, tiny_tokenizer: Any) -> Callable[..., list[str]]:
    """`answer(world, advance, gives_up)`: the answers to the 11 questions of `val`."""
    assert tiny_config.dataset.val is not None
    assert tiny_config.dataset.image_root is not None
    table: QuestionTable = read_table(tiny_config.dataset.val, ImageIndex(tiny_config.dataset.image_root))
    tokenized, _ = tokenize_table(table, tiny_tokenizer, PROMPT)
    questions = QuestionSet(table, tokenized, DecodedPictures(table, transform))  # type: ignore[arg-type]

    def run(world: World, advance: Callable[[int], None], gives_up: Callable[[], bool] | None) -> list[str]:
        model: Any = Model()
        return answer_questions(model, questions, SETTINGS, world, advance=advance, gives_up=gives_up)

    return run


def test_all_ranks_stop_after_the_same_batch_where_one_is_asked_to(answer: Callable[..., list[str]]) -> None:
    batches = [0, 0]

    def on_rank(world: World) -> list[str]:
        def advance(number: int) -> None:
            batches[world.rank] += number

        return answer(world, advance, lambda: world.rank == 1 and batches[1] >= 2)

    assert [type(result) for result in on_ranks(2, on_rank)] == [GaveUp, GaveUp]
    assert batches == [4, 4]  # of 6 and 5


def test_a_rank_without_a_last_batch_still_meets_the_others(
    answer: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "BATCHES_BETWEEN_MEETINGS", 1)
    (alone,) = on_ranks(1, lambda world: answer(world, lambda number: None, lambda: False))
    assert len(alone) == 11
    assert on_ranks(2, lambda world: answer(world, lambda number: None, lambda: False)) == [alone, alone]


def test_without_stops_ranks_meet_only_at_the_end(answer: Callable[..., list[str]]) -> None:
    meetings = [0, 0]

    def on_rank(world: World) -> list[str]:
        exchange = world._exchange

        def counted(value: Any) -> list[Any]:
            meetings[world.rank] += 1
            return exchange(value)

        object.__setattr__(world, "_exchange", counted)
        return answer(world, lambda number: None, None)

    assert all(len(result) == 11 for result in on_ranks(2, on_rank))
    assert meetings == [1, 1]
