"""Answers that several batches leave and end together, and batches that are answered in parts."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from artkv.config import Config, override_config
from artkv.distributed import World, single_process
from artkv.evaluation import generation
from artkv.evaluation.answering import ALL_ABLATIONS, Ablation, answer_under, answering_settings
from artkv.models.opt import decoding
from artkv.models.opt.decoding import Decoded
from artkv.session import Session
from tests.evaluation.test_answering import make_pictures_matter

MOST_TOKENS = 40


@pytest.fixture
def session(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Its random answers to the eleven questions end at many lengths: a token that many of them have is the end."""
    config = override_config(tiny_config, [f"evaluation.max_new_tokens={MOST_TOKENS}"])
    session = Session(config, single_process(torch.device("cpu")), ["val"]).load()
    make_pictures_matter(session)
    with torch.no_grad():
        for name, parameter in session.model.backbone.named_parameters().items():
            if name.startswith("language_model.model.decoder.layers.") and parameter.ndim == 2:
                parameter.mul_(10)
    free: list[list[int]] = []
    generate = session.model.generate_tokens

    def noted(*arguments: Any) -> Decoded:
        found = generate(*arguments)
        free.extend(found.token_ids.tolist())
        return found

    monkeypatch.setattr(session.model, "generate_tokens", noted)
    answers(session, 40)
    monkeypatch.undo()
    places = {one: {ids.index(one) for ids in free if one in ids} for ids in free for one in ids}
    end = max(places, key=lambda one: (len(places[one]), one))
    assert len(places[end]) > 3
    monkeypatch.setattr(decoding, "newline_token_id", lambda tokenizer: end)
    return session


def answers(session: Session, batch_size: int) -> list[list[str]]:
    settings = replace(answering_settings(session.config), batch_size=batch_size)
    world, questions = single_process(torch.device("cpu")), session.questions["val"]
    return [of_one.texts for of_one in answer_under(session.model, questions, settings, world, ALL_ABLATIONS)]


def passes(session: Session) -> Counter[int]:
    """How many passes through OPT were with so many rows at most, from now on."""
    counted: Counter[int] = Counter()

    def note(module: Any, inputs: Any, options: dict[str, Any]) -> None:
        counted[options["inputs_embeds"].shape[0]] += 1

    session.model.backbone.language_model.model.decoder.register_forward_pre_hook(note, with_kwargs=True)
    return counted


def test_what_batches_leave_is_ended_together_with_the_same_answers(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32."""
    alone = answers(session, 1)
    counted = passes(session)
    found, numbers = {}, {}
    for share in (8, 3, 2, 10**9):
        monkeypatch.setattr(generation, "SHARE_LEFT", share)
        for batch_size in (8, 16):  # two and four questions, each in four ways
            counted.clear()
            found[share, batch_size] = answers(session, batch_size)
            numbers[share, batch_size] = counted.total()
    assert all(one == alone for one in found.values())
    for batch_size in (8, 16):
        assert numbers[3, batch_size] < numbers[10**9, batch_size], numbers
        assert numbers[2, batch_size] < numbers[10**9, batch_size], numbers


def test_equal_questions_about_a_blank_picture_go_on_as_one(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven questions, of which the table has few different ones."""
    monkeypatch.setattr(generation, "SHARE_LEFT", 2)
    rows = []
    generate = session.model.generate_tokens

    def noted(visual: Any, prompts: Any, *others: Any) -> Decoded:
        rows.append(int(prompts.is_asked.sum()))
        return generate(visual, prompts, *others)

    monkeypatch.setattr(session.model, "generate_tokens", noted)
    blank = Ablation(image="blank")
    questions = session.questions["val"]
    prompts = {tuple(questions.tokenized.for_generation(row)[0]) for row in range(len(questions.table))}
    found = {}
    for batch_size in (1, 4, 100):
        rows.clear()
        settings = replace(answering_settings(session.config), batch_size=batch_size)
        world = single_process(torch.device("cpu"))
        found[batch_size] = answer_under(session.model, questions, settings, world, [blank])[0].texts
        assert max(rows) <= min(batch_size, len(prompts))
    assert found[4] == found[100] == found[1]
    assert len(prompts) < len(questions.table)


def test_on_two_ranks_too(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends what it has left; here one rank after the other, whose gathered parts are put together."""
    alone = answers(session, 1)
    gathered: list[Any] = []

    class Apart(World):
        def gather(self, value: Any) -> list[Any]:
            gathered.append(value)
            return [*gathered]

    questions = session.questions["val"]
    settings = replace(answering_settings(session.config), batch_size=8)
    first, second = (Apart(rank, 0, 2, torch.device("cpu")) for rank in range(2))
    with pytest.raises(RuntimeError, match="answers to 4 x 11"):  # it has its own alone
        answer_under(session.model, questions, settings, first, ALL_ABLATIONS)
    found = answer_under(session.model, questions, settings, second, ALL_ABLATIONS)
    assert [of_one.texts for of_one in found] == alone


@pytest.mark.parametrize("fails_above", [1, 2])
def test_where_memory_runs_out_rows_are_answered_in_parts(
    session: Session, fails_above: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = answers(session, 1)
    decoder = session.model.backbone.language_model.model.decoder

    def runs_out(module: Any, inputs: Any, options: dict[str, Any]) -> None:
        if options["inputs_embeds"].shape[0] > fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    counted = passes(session)
    handle = decoder.register_forward_pre_hook(runs_out, with_kwargs=True)
    assert answers(session, 16) == alone
    assert set(counted) >= {1}
    said = capsys.readouterr().err
    assert "memory ran out" in said
    assert "evaluation.batch_size" in said
    # Once it has been seen that a batch does not fit, none is tried again as a whole.
    assert said.count("memory ran out") <= 4
    handle.remove()
    decoder.register_forward_pre_hook(lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        answers(session, 16)


def test_what_is_no_want_of_memory_is_raised_at_once(session: Session) -> None:
    decoder = session.model.backbone.language_model.model.decoder
    calls = []

    def breaks(*_: Any) -> None:
        calls.append(1)
        raise RuntimeError("the device is gone")

    decoder.register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="the device is gone"):
        answers(session, 16)
    assert len(calls) == 1
