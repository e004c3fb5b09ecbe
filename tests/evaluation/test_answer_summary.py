"""Answers counted by pandas and by hand."""

import json
from collections import Counter

import numpy as np
import pandas as pd

from artkv.evaluation.answer_summary import (
    ALL,
    FEW_ANSWERS,
    AnswerSummary,
    Confusion,
    Frequency,
    Majority,
    most_frequent_answers,
    summarize_answers,
)


def test_the_majority_is_the_training_splits_and_scored_on_this_one() -> None:
    training = most_frequent_answers(
        ["Oil", "oil", "ink", "ink", "ink", "Monet", "x"], ["technique", "technique", "technique", "", "", "artist", ""]
    )
    assert training == {"technique": "oil", "untyped": "ink", "artist": "monet"}
    answers, types = ["ink", "Oil", "oil", "ink", "a", "b"], ["technique"] * 4 + ["title"] * 2
    found = summarize_answers(["x"] * 6, answers, types, training, "exact_match")
    assert found["technique"].majority == Majority("oil", 0.5, "train")
    # No training question was about titles: then the most frequent of these, the first by the alphabet of several.
    assert found["title"].majority == Majority("a", 0.5, "split")
    by_f1 = summarize_answers(["x"] * 2, ["oil paint", "oil"], ["technique"] * 2, training, "token_f1")
    assert by_f1["technique"].majority.value == (2 / 3 + 1) / 2


def test_without_types_there_is_one_group_with_the_majority_of_all() -> None:
    training = most_frequent_answers(["a", "b", "b"], ["", "", ""])
    found = summarize_answers(["b", "x"], ["b", "a"], ["", ""], training, "exact_match")
    assert list(found) == [ALL]
    assert found[ALL].majority == Majority("b", 0.5, "train")


def test_confusions_are_pandas_crosstab() -> None:
    generator = np.random.default_rng(0)
    names = ["baroque", "cubism", "realism"]
    answers = generator.choice(names, 200, p=[0.5, 0.3, 0.2]).tolist()
    predictions = generator.choice([*names, "rubbish", "Cubism"], 200).tolist()
    found = summarize_answers(predictions, answers, ["style"] * 200, {}, "exact_match")["style"]
    assert found.confusion is not None
    ordered = [name for name, _ in Counter(answers).most_common()]
    assert found.confusion.answers == tuple(ordered)
    lowered = [name.lower() for name in predictions]
    shown = ["other" if name == "rubbish" else name for name in lowered]
    table = pd.crosstab(pd.Series(answers), pd.Series(shown)).loc[ordered, [*ordered, "other"]]
    np.testing.assert_array_equal(found.confusion.counts, table.to_numpy())
    assert [one.answer for one in found.frequencies] == ordered
    for one in found.frequencies:
        assert (one.asked, one.predicted) == (answers.count(one.answer), lowered.count(one.answer))
        assert one.right == table.loc[one.answer, one.answer]


def test_the_worst_confusion_is_named() -> None:
    majority, none = Majority("a", 0.5, "split"), ()
    right = Confusion(("a", "b"), ((5, 0, 0), (0, 3, 0)))
    assert AnswerSummary(majority, none, right).worst_confusion() is None
    wrong = Confusion(("a", "b"), ((5, 2, 1), (4, 3, 0)))
    assert AnswerSummary(majority, none, wrong).worst_confusion() == ("b", "a", 4)
    other = Confusion(("a", "b"), ((5, 2, 9), (4, 3, 0)))
    assert AnswerSummary(majority, none, other).worst_confusion() == ("a", "other", 9)
    assert AnswerSummary(majority, none, None).worst_confusion() is None


def test_many_different_answers_have_no_table_and_the_most_frequent_are_listed() -> None:
    answers = [f"title {i}" for i in range(FEW_ANSWERS + 1)] + ["title 3"]
    found = summarize_answers(answers, answers, ["title"] * len(answers), {}, "exact_match")["title"]
    assert found.confusion is None
    assert found.frequencies[0] == Frequency("title 3", 2, 2, 2)
    assert len(found.frequencies) == 5


def test_json_comes_back() -> None:
    for found in summarize_answers(["a", "b"], ["a", "c"], ["x", "y"], {"x": "b"}, "exact_match").values():
        assert AnswerSummary.from_json(json.loads(json.dumps(found.to_json()))) == found
