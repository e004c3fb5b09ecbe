"""Ranks that answer a table together, and stop together where one of them is asked to."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import artkv.evaluation.answering as answering
from artkv.batch import PackedPrompts, PaintingFeatures, PaintingViews
from artkv.config import Config, override_config
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.table import QuestionTable, read_table
from artkv.datasets.tokenized_table import tokenize_table
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.evaluation.answering import (
    ALL_ABLATIONS,
    Ablation,
    AnsweringSettings,
    GaveUp,
    answer_questions,
    answer_under,
    answering_settings,
    shuffled_painting_index,
)
from artkv.session import Session
from tests.feature_cache.conftest import on_ranks

PROMPT = "Question: {question} Short answer:"
SETTINGS = AnsweringSettings(batch_size=1, max_new_tokens=3, workers=1, seed=0)


class Model:
    """Answers with the number of a prompt's tokens, and what was shown."""

    backbone = SimpleNamespace(language_model_width=8)
    num_visual_tokens = 1

    def visual_token_count(self, use_prefix: bool) -> int:
        return 1

    def encode(self, shown: PaintingViews) -> PaintingFeatures:
        return PaintingFeatures(shown.vit_pixels.flatten(1), self.encode_art(shown.art_pixels))

    def encode_art(self, pixels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(one.flatten(1) for one in pixels)

    def visual_tokens(self, features: PaintingFeatures, use_prefix: bool) -> Tensor:
        """(I, 1, 2): the picture's number, and that of the prefix, or -1."""
        art = features.art_features[0][:, :1] if use_prefix else torch.full((len(features), 1), -1.0)
        return torch.cat([features.image_features[:, :1], art], dim=1)[:, None]

    def generate_answers(self, visual_IKD: Tensor, prompts: PackedPrompts, max_new_tokens: int) -> list[str]:
        seen = {}
        for place, painting in zip(prompts.piece_places.tolist(), prompts.piece_painting.tolist(), strict=True):
            seen[divmod(place, prompts.token_ids.shape[1])] = visual_IKD[painting, 0].tolist()
        answers = []
        for place in prompts.places.tolist():
            row, slot = divmod(place, prompts.last_columns.shape[1])
            column = int(prompts.last_columns[row, slot])
            start = max(start for other, start in seen if other == row and start <= column)
            picture, art = seen[row, start]
            answers.append(f"{int(prompts.position_ids[row, column])} {picture:.0f} {art:.0f}")
        return answers


class Numbered:
    """A `PaintingSource` in which a painting's picture is its number, and the blank one 99."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def load(self, paintings: np.ndarray, art_paintings: np.ndarray, pin_memory: bool) -> PaintingViews:
        self.loaded += paintings.tolist()
        art = self.load_art(art_paintings, pin_memory)
        return PaintingViews(torch.tensor(paintings).float().view(-1, 1, 1, 1), art)

    def load_art(self, paintings: np.ndarray, pin_memory: bool) -> tuple[Tensor, ...]:
        return (torch.tensor(paintings).float().view(-1, 1, 1, 1),)

    def load_blank(self, number: int, pin_memory: bool) -> PaintingViews:
        blank = np.full(number, 99)
        return PaintingViews(torch.tensor(blank).float().view(-1, 1, 1, 1), self.load_art(blank, pin_memory))


@pytest.fixture
def questions(tiny_config: Config, tiny_tokenizer: Any) -> QuestionSet:
    """The 11 questions of `val`, on five paintings."""
    assert tiny_config.dataset.val is not None
    assert tiny_config.dataset.image_root is not None
    table: QuestionTable = read_table(tiny_config.dataset.val, ImageIndex(tiny_config.dataset.image_root))
    tokenized, _ = tokenize_table(table, tiny_tokenizer, PROMPT)
    return QuestionSet(table, tokenized, Numbered())


@pytest.fixture
def answer(questions: QuestionSet) -> Callable[..., list[str]]:
    """`answer(world, advance, gives_up)`: the answers to them."""

    def run(world: World, advance: Callable[[int], None], gives_up: Callable[[], bool] | None) -> list[str]:
        model: Any = Model()
        return answer_questions(model, questions, SETTINGS, world, advance=advance, gives_up=gives_up)

    return run


@pytest.mark.parametrize("batch_size", [1, 7, 100, None])
def test_each_ablation_is_shown_what_its_name_says(questions: QuestionSet, batch_size: int | None) -> None:
    model: Any = Model()
    table = questions.table
    partner = shuffled_painting_index(table.num_paintings, SETTINGS.seed)
    lengths = questions.tokenized.prompt_lengths.tolist()
    expected = {}
    for ablation in ALL_ABLATIONS:
        expected[ablation] = []
        for row, painting in enumerate(table.painting_of_row.tolist()):
            own = 99 if ablation.image == "blank" else painting
            art = {"on": own, "off": -1, "shuffled": partner[painting]}[ablation.prefix]
            expected[ablation].append(f"{lengths[row]} {own} {art}")
    settings = replace(SETTINGS, batch_size=batch_size)
    # Each by itself, all, and some of them in another order.
    for ablations in [*([ablation] for ablation in ALL_ABLATIONS), ALL_ABLATIONS, ALL_ABLATIONS[:0:-1]]:
        answers = answer_under(model, questions, settings, single_process(torch.device("cpu")), ablations)
        assert [answered.texts for answered in answers] == [expected[ablation] for ablation in ablations]


def test_a_picture_is_loaded_once_for_all_ablations(questions: QuestionSet) -> None:
    model: Any = Model()
    settings = replace(SETTINGS, batch_size=1000)
    answer_under(model, questions, settings, single_process(torch.device("cpu")), ALL_ABLATIONS)
    source: Any = questions.paintings
    assert sorted(source.loaded) == list(range(questions.table.num_paintings))


def make_pictures_matter(session: Session) -> None:
    """Random weights say nearly the same of every picture; this takes away what they have in common."""
    parameters, model = session.model.backbone.named_parameters(), session.model
    pictures = session.questions["val"].paintings.load(np.arange(5), np.arange(5), pin_memory=False)
    assert isinstance(pictures, PaintingViews)
    with torch.no_grad():
        common_KD = model.visual_tokens(model.encode(pictures)).mean(dim=0)
        parameters["language_projection.bias"].sub_(common_KD.mean(dim=0)).mul_(30)
        parameters["language_projection.weight"].mul_(30)


@pytest.mark.parametrize("frozen", ["resident", "stream"])
def test_answers_do_not_depend_on_the_batch(tiny_config: Config, frozen: str) -> None:
    """fp32. Streamed blocks are loaded the less often for an answer, the more are answered at once."""
    config = override_config(tiny_config, [f"frozen.opt={frozen}", "frozen.slots=1"][: 1 + (frozen == "stream")])
    world = single_process(torch.device("cpu"))
    session = Session(config, world, ["val"]).load()
    make_pictures_matter(session)
    questions, streamed = session.questions["val"], session.model.backbone.streamed.get("opt")
    answers, loads = [], []
    for batch_size in (1, 4, 40, None):
        before = 0 if streamed is None else streamed.total_loads
        settings = replace(answering_settings(config), batch_size=batch_size)
        answered = answer_under(session.model, questions, settings, world, ALL_ABLATIONS)
        answers.append([of_ablation.texts for of_ablation in answered])
        loads.append(0 if streamed is None else streamed.total_loads - before)
    assert answers[1:] == answers[:1] * 3
    assert len({answer for of_ablation in answers[0] for answer in of_ablation}) > 2
    if streamed is not None:
        # No answer of random weights ends before its five tokens. Four ablations: 11 batches of a question, 11, 2, 1.
        assert loads == [streamed.num_blocks * 5 * batches for batches in (11, 11, 2, 1)]


def test_a_shuffled_blank_picture_is_refused(questions: QuestionSet) -> None:
    model: Any = Model()
    with pytest.raises(UserError, match="all blank pictures have one prefix"):
        answer_under(model, questions, SETTINGS, single_process(), [Ablation("shuffled", "blank")])


def test_all_ranks_stop_after_the_same_batch_where_one_is_asked_to(
    answer: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "QUESTIONS_BETWEEN_MEETINGS", 4)
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
    monkeypatch.setattr(answering, "QUESTIONS_BETWEEN_MEETINGS", 1)
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


@pytest.mark.parametrize("num_paintings", [2, 3, 10, 997])
def test_shuffled_index_is_a_derangement(num_paintings: int) -> None:
    for seed in range(20):
        index = shuffled_painting_index(num_paintings, seed)
        assert sorted(index) == list(range(num_paintings))
        assert not (index == np.arange(num_paintings)).any()
        np.testing.assert_array_equal(index, shuffled_painting_index(num_paintings, seed))
    if num_paintings > 3:
        assert (shuffled_painting_index(num_paintings, 0) != shuffled_painting_index(num_paintings, 1)).any()


@pytest.mark.parametrize("num_paintings", [0, 1])
def test_too_few_paintings_cannot_be_shuffled(num_paintings: int) -> None:
    with pytest.raises(UserError, match=f"has {num_paintings} painting"):
        shuffled_painting_index(num_paintings, 0)
