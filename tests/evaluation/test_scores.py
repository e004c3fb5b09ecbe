"""Scores against sacrebleu called directly, hand-computed values and closed-form intervals."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from artkv.evaluation.scores import (
    METRICS,
    ChoiceScores,
    Scores,
    exact_match,
    format_calibration,
    format_table,
    score_choices,
    score_predictions,
    token_f1,
)
from tests.evaluation.evaluations import STYLES, answers_to, choices_of, make_table

PREDICTIONS = ["Oil on canvas", "jan van eyck", "the starry night", "baroque", "", "oil on oil"]
ANSWERS = ["oil on Canvas", "Hubert van Eyck", "Starry Night", "rococo", "oil", "Oil on oil on canvas, signed"]
TYPES = ["technique", "artist", "title", "", "technique", "technique"]


def reference_bleu(hypotheses: list[str], references: list[str]) -> float:
    """Mean sentence BLEU through sacrebleu's function interface, which builds its own metric."""
    scores = [
        sacrebleu.sentence_bleu(hypothesis.lower(), [reference.lower()], use_effective_order=True).score
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    return sum(scores) / len(scores) / 100


def test_exact_match_lower_cases_and_nothing_else() -> None:
    assert exact_match("Oil on CANVAS", "oil on canvas") == 1
    assert exact_match("oil on canvas.", "oil on canvas") == 0
    assert exact_match("oil on canvas ", "oil on canvas") == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Oil on canvas", "oil on Canvas", 1.0),
        ("the starry night", "Starry Night", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("jan van eyck", "hubert van eyck", 2 / 3),
        ("oil oil oil", "oil paint", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # one oil is common, not three
        ("  oil\n", "oil", 1.0),
        ("canvas,", "canvas", 0.0),
        ("baroque", "rococo", 0.0),
        ("", "", 1.0),
        ("", "oil", 0.0),
        (" ", "oil", 0.0),
    ],
)
def test_token_f1_by_hand(prediction: str, answer: str, expected: float) -> None:
    assert token_f1(prediction, answer) == pytest.approx(expected, abs=1e-12)


def test_both_bleu_orders_equal_sacrebleu() -> None:
    scores = score_predictions(PREDICTIONS, ANSWERS, TYPES, bootstrap_samples=10, seed=0)
    # 1e-9: sacrebleu's 100.00000000000004 for equal texts is cut to 1
    assert scores.overall.bleu.value == pytest.approx(reference_bleu(PREDICTIONS, ANSWERS), abs=1e-9)
    assert scores.overall.bleu_artquest.value == pytest.approx(reference_bleu(ANSWERS, PREDICTIONS), abs=1e-9)
    technique = [0, 4, 5]
    swapped = reference_bleu([ANSWERS[i] for i in technique], [PREDICTIONS[i] for i in technique])
    assert scores.by_type["technique"].bleu_artquest.value == pytest.approx(swapped, abs=1e-9)
    assert abs(scores.overall.bleu.value - scores.overall.bleu_artquest.value) > 0.005  # the order matters


def test_groups_and_counts() -> None:
    scores = score_predictions(PREDICTIONS, ANSWERS, TYPES, bootstrap_samples=10, seed=0)
    assert list(scores.by_type) == ["artist", "technique", "title", "untyped"]
    assert {name: group.count for name, group in scores.by_type.items()} == {
        "artist": 1, "technique": 3, "title": 1, "untyped": 1,
    }  # fmt: skip
    assert scores.overall.count == 6
    assert scores.overall.exact_match.value == pytest.approx(1 / 6)
    assert scores.by_type["technique"].exact_match.value == pytest.approx(1 / 3)
    assert scores.by_type["technique"].token_f1.value == pytest.approx((1 + 0 + 2 * 3 / (3 + 6)) / 3)


def test_no_type_at_all_gives_no_groups() -> None:
    scores = score_predictions(["a", "b"], ["a", "c"], ["", ""], bootstrap_samples=10, seed=0)
    assert scores.by_type == {}


def test_interval_of_independent_questions_is_the_binomial_one() -> None:
    count, correct = 1000, 700
    predictions = ["yes"] * correct + ["no"] * (count - correct)
    scores = score_predictions(predictions, ["yes"] * count, [""] * count, bootstrap_samples=4000, seed=3)
    half = 1.96 * math.sqrt(0.7 * 0.3 / count)  # 0.0284
    # The percentile of 4000 samples is itself known to about 0.0144 * sqrt(0.025 * 0.975 / 4000) / 0.058
    # = 0.0006 (standard deviation x quantile error); 0.002 is three of those.
    assert scores.overall.exact_match.low == pytest.approx(0.7 - half, abs=0.002)
    assert scores.overall.exact_match.high == pytest.approx(0.7 + half, abs=0.002)


def test_questions_of_one_painting_are_drawn_together() -> None:
    """Six equal outcomes a painting are worth one: the interval is sqrt(6) wider than by questions."""
    paintings, each = 200, 6
    predictions = [text for i in range(paintings) for text in ["yes" if i < 140 else "no"] * each]
    answers, types = ["yes"] * len(predictions), [""] * len(predictions)
    cluster = np.repeat(np.arange(paintings) * 17 + 5, each)  # any integers, not 0..C-1
    shuffled = np.random.default_rng(0).permutation(len(predictions))
    scores = score_predictions(
        [predictions[i] for i in shuffled], answers, types, 4000, seed=1, cluster=list(cluster[shuffled])
    )
    half = 1.96 * math.sqrt(0.7 * 0.3 / paintings)  # 0.0635
    # Tolerance: 0.0014 for the percentile as above, and the lattice of 1/200.
    assert scores.overall.exact_match.low == pytest.approx(0.7 - half, abs=0.007)
    assert scores.overall.exact_match.high == pytest.approx(0.7 + half, abs=0.007)
    assert scores.overall.clusters == paintings
    alone = score_predictions(predictions, answers, types, 4000, seed=1)
    width = alone.overall.exact_match.high - alone.overall.exact_match.low
    assert width == pytest.approx(2 * half / math.sqrt(6), abs=0.005)


def test_paintings_with_unequal_numbers_of_questions_keep_the_question_mean() -> None:
    """Against a plain loop that draws paintings, pools their questions and takes the mean."""
    generator = np.random.default_rng(5)
    cluster = generator.integers(12, size=60)
    right = generator.random(60) < 0.5
    predictions = ["yes" if one else "no" for one in right]
    scores = score_predictions(predictions, ["yes"] * 60, [""] * 60, 6000, seed=2, cluster=cluster.tolist())
    members = [np.flatnonzero(cluster == name) for name in np.unique(cluster)]
    means = []
    for _ in range(6000):
        drawn = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        means.append(right[drawn].mean())
    # Hesterberg's percentiles, further out than 2.5 and 97.5 with twelve paintings.
    tail = stats.norm.cdf(-math.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    low, high = np.quantile(means, [tail, 1 - tail])
    assert scores.overall.exact_match.value == pytest.approx(right.mean())
    assert scores.overall.exact_match.low == pytest.approx(low, abs=0.012)  # two independent draws of 6000
    assert scores.overall.exact_match.high == pytest.approx(high, abs=0.012)


def test_single_painting_claims_nothing() -> None:
    scores = score_predictions(["a", "b"], ["a", "b"], ["x", "y"], 100, seed=0, cluster=[4, 4])
    assert (scores.overall.exact_match.low, scores.overall.exact_match.high) == (0.0, 1.0)


@pytest.mark.parametrize("is_right", [False, True])
def test_where_all_paintings_are_equal_exact_match_has_wilsons_interval(is_right: bool) -> None:
    """Five wrong answers of five are not certain to be 0.000 [0.000, 0.000]; n is the number of paintings."""
    predictions, cluster = ["yes" if is_right else "no"] * 12, [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4]
    found = score_predictions(predictions, ["yes"] * 12, ["style"] * 12, 100, seed=0, cluster=cluster)
    expected = proportion_confint(5 * is_right, 5, alpha=0.05, method="wilson")
    for group in (found.overall, found.by_type["style"]):
        assert (group.exact_match.low, group.exact_match.high) == pytest.approx(expected)
        assert group.exact_match.value == is_right


def test_half_of_each_painting_right_is_not_certain_either() -> None:
    found = score_predictions(["a", "b"] * 6, ["a"] * 12, [""] * 12, 100, 0, cluster=[i // 2 for i in range(12)])
    most = proportion_confint(0, 6, alpha=0.05, method="wilson")[1]
    estimate = found.overall.exact_match
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - 0.5 * most, 0.5 + 0.5 * most))


def test_seed_decides_the_samples() -> None:
    def interval(seed: int) -> tuple[float, float]:
        predictions = ["a"] * 37 + ["b"] * 63
        estimate = score_predictions(predictions, ["a"] * 100, [""] * 100, 200, seed).overall.token_f1
        return estimate.low, estimate.high

    assert interval(1) == interval(1)
    assert len({interval(seed) for seed in range(8)}) > 1


def test_json_is_plain() -> None:
    scores = score_predictions(PREDICTIONS, ANSWERS, TYPES, bootstrap_samples=10, seed=0)
    tree = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert tree["overall"]["count"] == 6
    for metric in METRICS:
        estimate = tree["by_type"]["technique"][metric]
        assert set(estimate) == {"value", "low", "high"}
        assert all(type(number) is float for number in estimate.values())
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1


def test_bad_lengths_are_named() -> None:
    with pytest.raises(ValueError, match="answers has 1 entries but predictions has 2"):
        score_predictions(["a", "b"], ["a"], ["", ""], 10, 0)
    with pytest.raises(ValueError, match="cluster has 3"):
        score_predictions(["a", "b"], ["a", "b"], ["", ""], 10, 0, cluster=[0, 1, 2])
    with pytest.raises(ValueError, match="nothing to score"):
        score_predictions([], [], [], 10, 0)


def test_table_rows_columns_and_alignment() -> None:
    on = score_predictions(PREDICTIONS, ANSWERS, TYPES, bootstrap_samples=50, seed=0)
    off = score_predictions(PREDICTIONS[:2], ANSWERS[:2], TYPES[:2], bootstrap_samples=50, seed=0)
    lines = format_table({"on": on, "off": off}).splitlines()
    assert lines[0].split() == ["exact_match", "questions", "on", "off"]
    assert [line.split()[0] for line in lines[1:]] == ["artist", "technique", "title", "untyped", "all"]
    assert len({len(line) for line in lines}) == 1
    technique = on.by_type["technique"].exact_match
    assert f"{technique.value:.3f} [{technique.low:.3f}, {technique.high:.3f}]" in lines[2]
    assert lines[3].endswith(" -")  # the second column has no question about titles
    assert lines[5].split()[1] == "6/2"  # different question sets are shown, not hidden


def test_ten_thousand_questions_take_seconds() -> None:
    predictions = [f"painter number {i}" for i in range(10_000)]
    answers = [f"painter number {i // 2 * 2}" for i in range(10_000)]
    types = [["artist", "school", "title", "type", "technique", "timeframe"][i % 6] for i in range(10_000)]
    start = time.perf_counter()
    score_predictions(predictions, answers, types, 1000, 0, cluster=[i // 6 for i in range(10_000)])
    assert time.perf_counter() - start < 20  # 1.5 s measured on two cores; the margin is for a busy machine


def test_choices_are_scored_where_there_are_candidates(tmp_path: Path) -> None:
    """Six paintings; the styles of the first three are chosen rightly, but style 2 is no candidate."""
    table = make_table(tmp_path, paintings=6)
    answers = answers_to(table, styles_right=1)
    scores = score_choices(choices_of(table, 3), answers, table, STYLES, 200, 0)
    assert list(scores.by_type) == ["style"]
    assert scores.overall == scores.by_type["style"]
    assert (scores.overall.count, scores.overall.clusters, scores.not_candidates) == (6, 6, 2)
    assert (scores.overall.accuracy.value, scores.overall.exact_match.value) == (2 / 6, 1 / 6)
    # As the generated answers to these questions would be scored: the same intervals.
    styles = [row for row in range(12) if row % 2 == 0]
    chosen = [choice.text for choice in choices_of(table, 3) if choice is not None]
    gold, types = [table.answers[row] for row in styles], ["style"] * 6
    generated = score_predictions([answers[row] for row in styles], gold, types, 200, 0)
    assert scores.overall.exact_match == generated.overall.exact_match
    assert scores.overall.accuracy == score_predictions(chosen, gold, types, 200, 0).overall.exact_match
    assert scores.overall.calibration.ece == pytest.approx(0.7 - 2 / 6)
    assert ChoiceScores.from_json(json.loads(json.dumps(scores.to_json()))) == scores
    assert format_table({"on": scores}, "accuracy").splitlines()[0].split() == ["accuracy", "questions", "on"]
    assert format_calibration({"on": scores}).splitlines()[1].split() == ["on", "0.333", "0.167", "0.700", "0.367"]
    whole = replace(generated, choices=scores)
    assert Scores.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert "choices" not in generated.to_json()


def test_where_nobody_chose_there_is_nothing_to_score(tmp_path: Path) -> None:
    table = make_table(tmp_path, paintings=2)
    with pytest.raises(ValueError, match="choices are all None"):
        score_choices([None] * 4, [""] * 4, table, STYLES, 10, 0)
