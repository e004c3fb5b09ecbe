"""Cases: which answers differ, which pictures come first, and what the page's script is given."""

from pathlib import Path

from artkv.evaluation.results import Predictions
from artkv.evaluation.scores import score_predictions
from artkv.report.cases import gallery, join_cases, telling_images
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
    assert row[7:] == [0b001, 1]
    assert tree["rows"][0][7:] == [0b011, 0]
    assert [one[1] for one in tree["rows"]] == [-1, -1, 0, -1]
    assert texts[tree["rows"][0][2]] == "one.jpg"  # folders are nobody's business
    assert [column["name"] for column in tree["columns"]] == ["on", "off", "on-blank"]
