"""Which column is for what."""

import pytest

from artkv.errors import UserError
from artkv.starting.headers import check_given, find_columns, others_like, why_no_questions

PLAIN = {"image": "image", "question": "question", "answer": "answer"}


def no_pictures(name: str) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (["image", "question", "answer", "question_type"], {**PLAIN, "question_type": "question_type"}),
        (["Answer", " QUESTION", "IMG"], {"image": "IMG", "question": " QUESTION", "answer": "Answer"}),
        (["filename", "Question", "answer", "category"],
         {"image": "filename", "question": "Question", "answer": "answer", "question_type": "category"}),
        (["Image File", "question-text", "label"],
         {"image": "Image File", "question": "question-text", "answer": "label"}),
        (["image", "question", "answer", "need_external_knowledge"],
         {**PLAIN, "question_type": "need_external_knowledge"}),
        (["id", "question", "answer"], {"question": "question", "answer": "answer"}),
        (["qid", "image", "question", "answer"], {**PLAIN, "question_id": "qid"}),
    ],
)  # fmt: skip
def test_usual_names_are_found(header: list[str], columns: dict[str, str]) -> None:
    assert find_columns(header, {}, no_pictures) == columns


def test_what_is_given_is_taken_and_no_other_for_it() -> None:
    header = ["image", "scan", "question", "answer", "type"]
    assert find_columns(header, {"image": "scan"}, no_pictures)["image"] == "scan"
    assert "image" not in find_columns(header, {"image": "none such"}, no_pictures)
    assert "question_type" not in find_columns(header, {"question_type": "none"}, no_pictures)
    assert find_columns(header, {"answer": "question"}, no_pictures) == {
        "image": "image", "answer": "question", "question_type": "type",
    }  # fmt: skip


def test_pictures_decide_between_columns_and_find_one_without_a_name() -> None:
    header = ["image", "file", "question", "answer"]
    assert find_columns(header, {}, {"image": 0.2, "file": 0.9}.get)["image"] == "file"  # type: ignore[arg-type]
    assert find_columns(["x", "y", "question", "answer"], {}, lambda name: float(name == "y"))["image"] == "y"
    assert others_like(header, "image", "file") == ["image"]


def test_a_table_of_captions_is_told_from_one_that_lacks_a_column() -> None:
    assert why_no_questions(["IMAGE_FILE", "DESCRIPTION"], {"image": "IMAGE_FILE"}) == "captions, no questions"
    assert why_no_questions(["a", "question"], {"question": "question"}) == (
        "no column of image or answer among 'a', 'question'"
    )
    check_given([["a"], ["b"]], {"image": "b", "question_type": "none"})
    with pytest.raises(UserError, match=r"--type-column kind: no table has such a column; give one of 'a', 'b'"):
        check_given([["a"], ["b"]], {"question_type": "kind"})
