"""Tables of what is taken for what: counted against a plain count, and bounded."""

from collections import Counter
from pathlib import Path

import pytest

from artkv.evaluation.results import Predictions
from artkv.evaluation.scores import score_predictions
from artkv.report.confusion import MOST_SHOWN, described_confusions, matrix_of
from artkv.report.evidence import Evaluation

PAIRS = [  # right, given, how often
    ("Mosaic", "mosaic", 4), ("mosaic", "Cubism", 1), ("cubism", "mosaic", 2), ("cubism", "cubism", 1),
    ("impasto", "oil", 1), ("impasto", "", 1),
]  # fmt: skip


def spread(pairs: list[tuple[str, str, int]]) -> tuple[list[str], list[str]]:
    """Predictions and answers."""
    return [given for _, given, n in pairs for _ in range(n)], [right for right, _, n in pairs for _ in range(n)]


def test_counts_are_of_right_and_given_answers_lower_cased() -> None:
    matrix = matrix_of(*spread(PAIRS))
    assert (matrix.answers, matrix.others) == (("mosaic", "cubism", "impasto"), 0)
    assert matrix.counts == ((4, 1, 0, 0), (2, 1, 0, 0), (0, 0, 0, 2))


@pytest.mark.parametrize(("distinct", "others"), [(18, 0), (19, 0), (20, 1), (21, 2), (64, 45)])
def test_the_rarest_answers_share_the_last_row_and_nothing_is_lost(distinct: int, others: int) -> None:
    names = [f"answer {number:02d}" for number in range(distinct)]
    answers = [name for number, name in enumerate(names) for _ in range(distinct - number)]
    predictions = [names[(7 * place) % distinct] for place in range(len(answers))]
    matrix = matrix_of(predictions, answers)
    assert len(matrix.counts) == min(distinct, MOST_SHOWN)
    assert {len(row) for row in matrix.counts} == {len(matrix.answers) + 1}
    assert matrix.others == others
    assert matrix.answers == tuple(names[: MOST_SHOWN - 1])  # by how often they are right
    pairs = Counter(zip(answers, predictions, strict=True))
    for place, name in enumerate(matrix.answers):
        assert list(matrix.counts[place][:-1]) == [pairs[name, other] for other in matrix.answers]
    assert sum(map(sum, matrix.counts)) == len(answers)


def evaluation(name: str, given: list[str], answers: list[str], types: list[str]) -> Evaluation:
    columns = {"answer": answers, "prediction": given, "question_type": types, "question_id": answers}
    scores = score_predictions(given, answers, types, 10, 0)
    return Evaluation(name, name, Predictions(Path("predictions.csv"), columns, "step_00000001"), scores)


TYPES = ["colour"] * 4 + ["style"] * 4 + ["one"] * 4 + ["title"] * 65
ANSWERS = ["red", "blue"] * 2 + ["mosaic", "oil"] * 2 + ["yes"] * 4 + [f"title {number}" for number in range(65)]
WITHOUT = ["red", "blue"] * 2 + ["oil", "oil"] * 2 + ANSWERS[8:]


def test_types_with_few_answers_and_more_than_one_have_tables_those_first_that_the_prefix_helps() -> None:
    on, off = evaluation("on", ANSWERS, ANSWERS, TYPES), evaluation("off", WITHOUT, ANSWERS, TYPES)
    style, colour = described_confusions([on, off])
    assert [style["name"], colour["name"]] == ["style", "colour"]
    assert [table["label"] for table in style["tables"]] == ["on", "off"]
    first, second = (table["rows"] for table in style["tables"])
    assert [[cell["text"] for cell in row["cells"]] for row in first] == [["2", "0"], ["0", "2"]]
    assert [[cell["text"] for cell in row["cells"]] for row in second] == [["0", "2"], ["0", "2"]]
    assert [[cell["is_right"] for cell in row["cells"]] for row in second] == [[True, False], [False, True]]
    assert [[cell["shade"] for cell in row["cells"]] for row in second] == [[0, 5], [0, 5]]
    assert [row["total"] for row in second] == ["2", "2"]


def test_beside_the_prefix_is_the_control_where_off_is_missing_or_nothing() -> None:
    on, control = evaluation("on", ANSWERS, ANSWERS, TYPES), evaluation("control", WITHOUT, ANSWERS, TYPES)
    shuffled = evaluation("shuffled", WITHOUT, ANSWERS, TYPES)
    assert [table["label"] for table in described_confusions([on, shuffled, control])[0]["tables"]] == ["on", "control"]
    (alone, _) = described_confusions([on, shuffled])
    assert alone["name"] == "colour"
    assert [table["label"] for table in alone["tables"]] == ["on"]


def test_questions_without_types_have_one_table_and_answers_that_were_not_asked_for_a_column() -> None:
    predictions, answers = spread(PAIRS)
    (entry,) = described_confusions([evaluation("on", predictions, answers, [""] * len(answers))])
    assert entry["name"] == "all"
    (table,) = entry["tables"]
    assert table["columns"] == ["mosaic", "cubism", "impasto", None]
    assert [cell["text"] for cell in table["rows"][2]["cells"]] == ["0", "0", "0", "2"]
    assert not any(cell["is_right"] for cell in table["rows"][2]["cells"][3:])
    known, _ = spread(PAIRS[:4])
    (entry,) = described_confusions([evaluation("on", known, spread(PAIRS[:4])[1], [""] * len(known))])
    assert entry["tables"][0]["columns"] == ["mosaic", "cubism"]
