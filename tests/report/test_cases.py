"""Cases: which answers differ, which pictures come first, and what the page's script is given."""

from dataclasses import replace
from pathlib import Path

import pytest

from artkv.errors import UserError
from artkv.evaluation.results import Predictions
from artkv.evaluation.scores import score_predictions
from artkv.report.cases import Chosen, gallery, join_cases, telling_images
from artkv.report.evidence import Evaluation

GOLD = ["mosaic", "Red", "boat", ""]
IMAGES = ["a/one.jpg", "a/one.jpg", "two.jpg", "three.jpg"]


def evaluation(name: str, answers: list[str]) -> Evaluation:
    columns = {
        "question_id": ["q1", "q2", "q3", "q4"],
        "image": IMAGES,
        "question": ["Which style?", "Which colour?", "Which style?", "What?"],
        "answer": GOLD,
        "question_type": ["style", "colour", "style", ""],
        "prediction": answers,
    }
    scores = score_predictions(answers, GOLD, columns["question_type"], 10, 0)
    return Evaluation(name, name, Predictions(Path("predictions.csv"), columns, "step_00000001"), scores)


EVALUATIONS = [
    evaluation("on", ["mosaic", "red", "boat", ""]),
    evaluation("off", ["mosaic", "red", "tree", ""]),
    evaluation("on-blank", ["dots", "blue", "tree", "x"]),
]


def test_a_case_has_the_answers_in_order_and_whether_they_are_right() -> None:
    cases = join_cases(EVALUATIONS)
    assert [case.answers for case in cases] == [
        ("mosaic", "mosaic", "dots"), ("red", "red", "blue"), ("boat", "tree", "tree"), ("", "", "x"),
    ]  # fmt: skip
    assert [case.is_right for case in cases] == [
        (True, True, False), (True, True, False), (True, False, False), (True, True, False),
    ]  # fmt: skip
    # The question alone is not what the prefix is judged by.
    assert [case.differs for case in cases] == [False, False, True, False]
    assert [case.question_type for case in cases] == ["style", "colour", "style", "untyped"]


def test_pictures_with_differing_answers_come_first_and_each_comes_once() -> None:
    assert telling_images(join_cases(EVALUATIONS)) == ["two.jpg", "a/one.jpg", "three.jpg"]


def test_any_beginning_of_the_other_pictures_is_spread_over_the_file() -> None:
    answers = ["same"] * 64
    columns = dict.fromkeys(("question_id", "question", "answer", "question_type", "prediction"), answers)
    columns["image"] = [f"{number}.jpg" for number in range(64)]
    scores = score_predictions(answers, answers, answers, 10, 0)
    on = Evaluation("on", "on", Predictions(Path("predictions.csv"), columns, "step_00000001"), scores)
    images = telling_images(join_cases([on]))
    assert sorted(images) == sorted(columns["image"])
    first = sorted(int(image.removesuffix(".jpg")) for image in images[:8])
    assert first == list(range(0, 64, 8))


def test_the_gallery_stores_each_text_once_and_tells_what_the_page_lacks() -> None:
    tree = gallery(EVALUATIONS, join_cases(EVALUATIONS), ["two.jpg"])
    texts = tree["texts"]
    assert len(texts) == len(set(texts))
    row = tree["rows"][2]
    assert [row[0], row[1]] == ["q3", 0]
    assert [texts[place] for place in row[2:6]] == ["two.jpg", "Which style?", "boat", "style"]
    assert [texts[place] for place in row[6]] == ["boat", "tree", "tree"]
    assert row[7:] == [0b001, 1, [], []]
    assert tree["rows"][0][7:] == [0b011, 0, [], []]
    assert [one[1] for one in tree["rows"]] == [-1, -1, 0, -1]
    assert texts[tree["rows"][0][2]] == "one.jpg"  # folders are nobody's business
    assert [column["name"] for column in tree["columns"]] == ["on", "off", "on-blank"]


def with_columns(name: str, answers: list[str], **columns: list[str]) -> Evaluation:
    one = evaluation(name, answers)
    return replace(one, predictions=replace(one.predictions, columns={**one.predictions.columns, **columns}))


CHOSEN = {
    "choice": ["mosaic", "", "tree", ""],
    "choice_probability": ["0.75", "", "0.5", ""],
    "gold_probability": ["0.75", "", "0.0", ""],
}


def test_a_case_has_what_was_chosen_and_whose_prefix_was_given() -> None:
    shuffled = with_columns("shuffled", ["x"] * 4, prefix_of=["two.jpg", "two.jpg", "a/one.jpg", "three.jpg"])
    evaluations = [with_columns("on", ["mosaic", "red", "boat", ""], **CHOSEN), shuffled]
    cases = join_cases(evaluations)
    assert [case.chosen for case in cases] == [
        (Chosen("mosaic", 0.75, 0.75), None), (None, None), (Chosen("tree", 0.5, 0.0), None), (None, None),
    ]  # fmt: skip
    assert [case.prefix_of for case in cases] == [
        ("", "two.jpg"),
        ("", "two.jpg"),
        ("", "a/one.jpg"),
        ("", "three.jpg"),
    ]
    tree = gallery(evaluations, cases, ["two.jpg", "a/one.jpg"])
    texts = tree["texts"]
    (chosen, none), (nobody, giver) = tree["rows"][2][9:]
    assert (texts[chosen[0]], chosen[1:], none) == ("tree", [0.5, 0.0], 0)
    assert (nobody, giver[0], texts[giver[1]]) == (0, 1, "one.jpg")
    assert tree["rows"][3][9:] == [[0, 0], [0, [-1, texts.index("three.jpg")]]]


def test_choices_without_probabilities_have_none() -> None:
    (case, *_) = join_cases([with_columns("on", ["x"] * 4, choice=["mosaic", "", "", ""])])
    assert case.chosen == (Chosen("mosaic", None, None),)


@pytest.mark.parametrize("text", ["likely", "1.5", "-0.1", "nan", "inf"])
def test_what_is_no_probability_is_named_by_row_and_column(text: str) -> None:
    columns = {**CHOSEN, "gold_probability": ["0.75", "", text, ""]}
    with pytest.raises(UserError, match=f"in row 3 gold_probability is '{text}', which is no number .*evaluate again"):
        join_cases([with_columns("on", ["x"] * 4, **columns)])
