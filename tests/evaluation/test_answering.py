"""Ranks that answer a table together, and stop together where one of them is asked to."""

import re
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
from artkv.datasets.packing import PackingSettings
from artkv.datasets.prompt_packing import pack_prompts
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
    all_ablations,
    answer_questions,
    answer_under,
    answering_settings,
    check_ablations,
    shuffled_painting_index,
)
from artkv.models.opt.decoding import Decoded
from artkv.session import Session
from tests.feature_cache.conftest import on_ranks
from tests.models.conftest import greedy_answers

PROMPT = "Question: {question} Short answer:"
SETTINGS = AnsweringSettings(batch_size=1, max_new_tokens=3, workers=1, seed=0)


class Model:
    """Answers with the number of a prompt's tokens, and what was shown."""

    backbone = SimpleNamespace(language_model_width=8)
    num_visual_tokens = 1

    def in_room(self, answer: Callable[[], Any]) -> Any:
        return answer()

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

    def generate_tokens(
        self, visual_IKD: Tensor, prompts: PackedPrompts, max_new_tokens: int, leave: int, parts: int
    ) -> Decoded:
        seen = {}
        for place, painting in zip(prompts.piece_places.tolist(), prompts.piece_painting.tolist(), strict=True):
            seen[divmod(place, prompts.token_ids.shape[1])] = visual_IKD[painting, 0].tolist()
        answers = []
        for place in prompts.places.tolist():
            row, slot = divmod(place, prompts.last_columns.shape[1])
            column = int(prompts.last_columns[row, slot])
            start = max(start for other, start in seen if other == row and start <= column)
            picture, art = seen[row, start]
            answers.append([int(prompts.position_ids[row, column]), round(picture), round(art)])
        return Decoded(torch.tensor(answers), None, torch.zeros(len(answers), dtype=torch.int64))

    def answers_of(self, token_ids: Tensor) -> list[str]:
        return [" ".join(map(str, ids)) for ids in token_ids.tolist()]


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


BOTH = (
    "[{{name: a, architecture: test_efficientnet, checkpoint: {0}, image_size: 32}}, "
    "{{name: b, architecture: test_efficientnet, checkpoint: {0}, image_size: 64, read: map, size: 2, view: whole}}]"
)


def two_encoders(config: Config, *overrides: str) -> Config:
    """The tiny config with encoders `a`, pooled, and `b`, of four tokens."""
    assert config.efficientnet is not None
    encoders = BOTH.format(config.efficientnet.checkpoint)
    return override_config(config, ["efficientnet=null", f"art_encoders={encoders}", *overrides])


def make_art_matter(session: Session) -> None:
    """An untrained EfficientNet tells hardly one painting from another."""
    make_pictures_matter(session)
    with torch.no_grad():
        for name, parameter in session.model.named_trainables().items():
            if parameter.ndim > 1 and not name.startswith("qformer."):
                parameter.mul_(30)
            if name.endswith("gate"):
                parameter.fill_(1.0)


def rows_of(session: Session, visual_IKD: Tensor) -> list[str]:
    """Each question's answer by itself, of the paintings' tokens as they are given."""
    questions, settings = session.questions["val"], answering_settings(session.config)
    tokenized, answers = questions.tokenized, []
    for row, painting in enumerate(questions.table.painting_of_row.tolist()):
        prompt, width = tokenized.for_generation(row)[0], session.model.backbone.language_model_width
        packing = PackingSettings(visual_IKD.shape[1], width)
        packed = pack_prompts([prompt], [0], tokenized.pad_token_id, packing, [visual_IKD.shape[1]])
        answers += greedy_answers(session.model, visual_IKD[painting : painting + 1], packed, settings.max_new_tokens)
    return answers


@pytest.mark.parametrize("injection", ["concat", "decoupled", "prompt"])
def test_a_masked_encoders_answers_are_those_of_the_mask(tiny_config: Config, injection: str) -> None:
    world = single_process(torch.device("cpu"))
    config = two_encoders(tiny_config, f"kv_modulation.injection={injection}", "training.seed=5")
    session = Session(config, world, ["val"]).load()
    make_art_matter(session)
    model, questions = session.model, session.questions["val"]
    numbers = np.arange(questions.table.num_paintings)
    partner = shuffled_painting_index(len(numbers), 5)
    assert (partner != numbers).all()
    views = questions.paintings.load(numbers, numbers, pin_memory=False)
    assert isinstance(views, PaintingViews)
    with torch.no_grad():
        features = model.encode(views)
        art_a, art_b = features.art_features
        image, others = features.image_features, torch.from_numpy(partner)
        shown = {
            "on": (features, True),
            "off": (features, False),
            "shuffled": (PaintingFeatures(image, (art_a[others], art_b[others])), True),
            "a-off": (features, [False, True]),
            "a-shuffled": (PaintingFeatures(image, (art_a[others], art_b)), True),
            "b-off": (features, [True, False]),
            "b-shuffled": (PaintingFeatures(image, (art_a, art_b[others])), True),
        }
        tokens = {name: model.visual_tokens(*given) for name, given in shown.items()}
        expected = {name: rows_of(session, one) for name, one in tokens.items()}
    ablations = all_ablations(config)
    assert [one.name for one in ablations] == [*expected, "on-blank"]
    answered = answer_under(model, questions, answering_settings(config), world, ablations)
    for ablation, found in zip(ablations[:-1], answered, strict=False):
        assert found.texts == expected[ablation.name], ablation.name
    for name in ("off", "a-off", "b-off", "a-shuffled", "b-shuffled"):
        one, on = tokens[name], tokens["on"]
        assert one.shape != on.shape or not torch.allclose(one, on, atol=1e-3), name
    # One by itself, and two without the prefix on, whose paintings are loaded otherwise.
    for some in ([ablations[3]], [ablations[4]], [ablations[2], ablations[6]]):
        alone = answer_under(model, questions, answering_settings(config), world, some)
        assert [one.texts for one in alone] == [expected[one.name] for one in some]


def test_one_encoder_has_the_four_ablations_and_a_control_three(tiny_config: Config) -> None:
    assert all_ablations(tiny_config) == list(ALL_ABLATIONS)
    control = override_config(tiny_config, ["kv_modulation.enabled=false"])
    assert [one.name for one in all_ablations(control)] == ["on", "off", "on-blank"]
    assert Ablation("off").conditions == {"prefix": "off", "image": "on"}
    assert Ablation("off", encoder="a").conditions == {"prefix": "off", "image": "on", "encoder": "a"}
    assert Ablation("off", "blank", "a").name == "a-off-blank"


@pytest.mark.parametrize(
    ("ablation", "overrides", "says"),
    [
        (Ablation("off", encoder="c"), None, "--prefix off:c: the encoders of x are a, b; give one of these"),
        (Ablation("shuffled", encoder="A"), None, "--prefix shuffled:A: the encoders of x are a, b"),
        (Ablation("off", encoder="test_efficientnet"), [], "x has one art encoder alone; give --prefix off"),
        (Ablation("off", encoder="a"), ["kv_modulation.enabled=false"], "x has no art encoder; give --prefix off"),
        (Ablation("shuffled", encoder="a"), ["kv_modulation.enabled=false"], "has no prefix to shuffle"),
    ],
)
def test_an_encoder_that_the_run_has_not_is_refused(
    tiny_config: Config, ablation: Ablation, overrides: list[str] | None, says: str
) -> None:
    config = two_encoders(tiny_config) if overrides is None else override_config(tiny_config, overrides)
    with pytest.raises(UserError, match=re.escape(says)):
        check_ablations([ablation], config, "x")


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
