"""Candidates of a CSV file, and their likelihoods under each ablation, on ranks and in batches of any size."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from artkv.config import Config, override_config
from artkv.datasets.columns import StringColumn
from artkv.datasets.tokenization import collate_questions
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.evaluation.answering import (
    ALL_ABLATIONS,
    Ablation,
    Answered,
    AnsweringSettings,
    answer_under,
    answering_settings,
    shuffled_painting_index,
)
from artkv.evaluation.choices import MOST_CANDIDATES, Candidates, choose, read_candidates, row_choices
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.session import Session
from tests.evaluation.evaluations import make_table
from tests.evaluation.test_answering import make_pictures_matter
from tests.feature_cache.conftest import on_ranks


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_texts_that_exact_match_takes_for_one_are_one_spelled_as_it_is_most_often(tmp_path: Path) -> None:
    given = write(
        tmp_path / "c.csv", "answer,question_type", "Oil,technique", "oil,technique", "oil,technique",
        "oil on canvas,technique", "NA,technique", "Baroque,", "a,style", "A,style",
    )  # fmt: skip
    candidates = read_candidates(given)
    assert candidates.by_type == {
        "style": ("A",), "technique": ("NA", "oil", "oil on canvas"), "untyped": ("Baroque",),
    }  # fmt: skip
    assert candidates.of("") == ("Baroque",)
    assert candidates.of("artist") == ()
    assert read_candidates(write(tmp_path / "d.csv", "answer", "x", "y")).by_type == {"untyped": ("x", "y")}


def test_a_type_with_too_many_answers_is_left_out_with_their_number(tmp_path: Path) -> None:
    rows = [f"title {number},title" for number in range(MOST_CANDIDATES + 1)]
    rows += [f"year {number},year" for number in range(MOST_CANDIDATES)]
    given = write(tmp_path / "train.csv", "answer,question_type", *rows)
    candidates = read_candidates(given, MOST_CANDIDATES)
    assert candidates.left_out == {"title": 65}
    assert len(candidates.by_type["year"]) == 64
    assert candidates.describe(["title", "year", "", "year"]) == (
        "choices: year (64); left out: title (65 different answers, more than 64), untyped (none in train.csv)"
    )
    assert read_candidates(given).left_out == {}  # a file of candidates has as many as somebody wants


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["question_type", "x"], r"c.csv:1: missing column 'answer'"),
        (["answer,question_type", "x,a", ",a"], r"c.csv:3: empty answer; give each candidate as one line of text"),
        (["answer,question_type", '"x\ny",a'], r"c.csv:2: answer 'x\\ny' holds a line break"),
        (["answer"], r"c.csv:1: no rows below the header; add at least one row"),
        (["answer", "x,y"], r"c.csv:2: the row has 2 fields, the header 1"),
    ],
)
def test_a_file_that_is_not_right_is_told_with_its_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_candidates(write(tmp_path / "c.csv", *lines))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.csv: cannot be read"):
        read_candidates(tmp_path / "nowhere.csv")


def test_probabilities_are_the_softmax_and_the_likeliest_is_chosen(tmp_path: Path) -> None:
    """By scipy's softmax. The style's right answer is spelled otherwise in the table, colours have no candidates."""
    table = make_table(tmp_path, paintings=3)
    candidates = Candidates({"style": ("STYLE 0", "style 9", "style 1")}, {"colour": 99}, Path("c.csv"))
    rng = np.random.default_rng(0)
    logs = [rng.normal(-900, 3, 3) if row % 2 == 0 else np.zeros(0) for row in range(6)]
    logs[2] = np.array([-5.0, -3.0, -3.0])  # of equally likely ones the first
    chosen = choose(candidates, table, logs)
    assert chosen[1::2] == [None] * 3
    for row, gold in ((0, 0), (2, 2), (4, None)):  # the third painting's style 2 is no candidate
        choice, shares = chosen[row], softmax(logs[row])
        assert choice is not None
        assert choice.text == candidates.of("style")[int(shares.argmax())]
        assert choice.probability == pytest.approx(shares.max(), rel=1e-12)
        assert choice.gold_probability == pytest.approx(0 if gold is None else shares[gold], rel=1e-12)


CANDIDATES = Candidates({"thing": ("o", "oil", "oil on canvas", "Jan", "Jan van Eyck")}, {}, Path("c.csv"))


def with_choices(session: Session, candidates: Candidates = CANDIDATES, longest: int = 100) -> Any:
    questions = session.questions["val"]
    return replace(questions, choices=row_choices(candidates, questions, session.model.backbone.tokenizer, longest))


def load(config: Config, world: World) -> Session:
    session = Session(config, world, ["val"]).load()
    make_pictures_matter(session)
    with torch.no_grad():  # and prefixes too
        for name, parameter in session.model.named_trainables().items():
            if "generator.mlp" in name:
                parameter.mul_(30)
    # The first question has no type, and so no candidates.
    questions = session.questions["val"]
    types = StringColumn(["", *list(questions.table.question_types)[1:]])
    session.questions["val"] = replace(questions, table=replace(questions.table, question_types=types))
    return session


def unpacked(session: Session, ablation: Ablation, seed: int) -> list[list[float]]:
    """Each candidate by itself, in a row of its own, behind visual tokens of its own."""
    model: KVModulatedBlip2 = session.model
    questions = session.questions["val"]
    partner = shuffled_painting_index(questions.table.num_paintings, seed)
    tokenizer, result = model.backbone.tokenizer, []
    for row, painting in enumerate(questions.table.painting_of_row.tolist()):
        result.append([])
        if not questions.table.question_types[row]:
            continue
        art = np.array([partner[painting] if ablation.prefix == "shuffled" else painting])
        source = questions.paintings
        seen: Any = source.load_blank(1, False) if ablation.image == "blank" else source.load([painting], art, False)
        visual = model.visual_tokens(model.encode(seen), use_prefix=ablation.prefix != "off")
        prompt = questions.tokenized.for_generation(row)[0]
        for candidate in CANDIDATES.of("thing"):
            answer = tokenizer(f" {candidate}\n", add_special_tokens=False).input_ids
            one = collate_questions([(prompt + answer, [-100] * len(prompt) + answer)], [0], 1.0, 1)
            result[-1].append(-float(model.answer_loss(visual, one).loss_sum))
    return result


def flat(answered: Sequence[Answered]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.concatenate(one.log_likelihoods) for one in answered]))


@pytest.mark.parametrize("frozen", ["resident", "stream"])
def test_each_ablations_likelihoods_are_those_of_one_candidate_at_a_time(tiny_config: Config, frozen: str) -> None:
    config = override_config(tiny_config, [f"frozen.opt={frozen}", "frozen.slots=1"][: 1 + (frozen == "stream")])
    world = single_process(torch.device("cpu"))
    session = load(config, world)
    questions, settings = with_choices(session), answering_settings(config)
    plain = answer_under(session.model, session.questions["val"], settings, world, ALL_ABLATIONS)
    with torch.no_grad():
        expected = [unpacked(session, ablation, settings.seed) for ablation in ALL_ABLATIONS]
    reference = torch.tensor([log for of_ablation in expected for logs in of_ablation for log in logs])
    for batch_size in (1, 7, None):
        settings = replace(settings, batch_size=batch_size)
        answered = answer_under(session.model, questions, settings, world, ALL_ABLATIONS)
        assert [one.texts for one in answered] == [one.texts for one in plain]
        for of_ablation in answered:
            assert [len(logs) for logs in of_ablation.log_likelihoods] == [0] + [5] * 10
        # fp32; the worst seen is 1.5e-7 relative.
        torch.testing.assert_close(flat(answered).float(), reference, rtol=2e-6, atol=0)
    on, *others = (flat([one]) for one in answered)
    assert all((on - other).abs().max() > 0.01 for other in others)


def test_ranks_share_the_candidates_and_all_know_all(tiny_config: Config) -> None:
    session = load(tiny_config, single_process(torch.device("cpu")))
    questions = with_choices(session)

    def on_rank(world: World) -> list[Answered]:
        settings = AnsweringSettings(batch_size=4, max_new_tokens=2, workers=1, seed=0)
        return answer_under(session.model, questions, settings, world, [Ablation("on"), Ablation("shuffled")])

    (alone,), both = on_ranks(1, on_rank), on_ranks(2, on_rank)
    for result in both:
        assert [one.texts for one in result] == [one.texts for one in alone]
        assert torch.equal(flat(result), flat(alone))


def test_no_more_candidates_are_scored_at_once_than_questions_are_answered(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = single_process(torch.device("cpu"))
    session = load(tiny_config, world)
    sizes = []
    scored = KVModulatedBlip2.log_likelihoods

    def counted(self: KVModulatedBlip2, visual: Tensor, choices: Any) -> Tensor:
        sizes.extend(part.num_answers for part in choices)
        return scored(self, visual, choices)

    monkeypatch.setattr(KVModulatedBlip2, "log_likelihoods", counted)
    settings = replace(answering_settings(tiny_config), batch_size=8)
    answer_under(session.model, with_choices(session), settings, world, ALL_ABLATIONS)
    assert max(sizes) == 8
    assert sum(sizes) == 10 * 5 * 4


def test_candidates_that_nobody_is_asked_for_or_that_do_not_fit_are_refused(tiny_config: Config) -> None:
    session = load(tiny_config, single_process(torch.device("cpu")))
    for candidates, longest, message in (
        (replace(CANDIDATES, by_type={"artist": ("x",)}), 100, "c.csv: has candidates for none of the types of .*"),
        (CANDIDATES, 12, r"val.csv:3: with the candidate 'oil on canvas' of c.csv .* room for 12; shorten one of them"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            with_choices(session, candidates, longest)


def test_a_table_without_types_is_to_get_them_or_candidates_without(tiny_config: Config, tmp_path: Path) -> None:
    val = write(tmp_path / "val.csv", "image,question,answer", *(f"val{n}.png,What is it?,oil" for n in range(5)))
    config = override_config(tiny_config, [f"dataset.val={val}"])
    session = load(config, single_process(torch.device("cpu")))
    remedy = (
        r"give the questions of val\.csv their types \(artist\) in its column question_type, or give --choices a CSV"
    )
    with pytest.raises(UserError, match=remedy):
        with_choices(session, replace(CANDIDATES, by_type={"artist": ("x",)}), 100)
