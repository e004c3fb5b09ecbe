"""What is said of each of several art encoders, of answers whose differences are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from artkv.evaluation.compared_runs import compare_runs
from artkv.evaluation.comparison import Comparison
from artkv.evaluation.encoder_effects import encoder_effects, encoder_verdicts, format_encoders
from artkv.evaluation.run_roles import open_run
from artkv.evaluation.verdicts import format_comparison, verdicts
from artkv.report.differences import encoder_rows
from tests.evaluation.evaluations import PAINTINGS, write_encoders_run

# Twenty styles. `a` and `b` tell the same: the trained model leans on `a`, and one without it leans on `b` as well.
# `c` alone tells the little that it tells.
ON = {"on": 20, "off": 3, "shuffled": 4, "on-blank": 0}
MASKED = {"a-off": 4, "a-shuffled": 6, "b-off": 18, "b-shuffled": 18, "c-off": 12, "c-shuffled": 13}


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    run = write_encoders_run(tmp_path / "run", ON | MASKED, "abc")
    others = {"no_a": ("bc", 20), "no_b": ("ac", 19), "no_c": ("ab", 12)}
    retrained = [write_encoders_run(tmp_path / name, {"on": right}, names) for name, (names, right) in others.items()]
    comparison, path = compare_runs([open_run(folder) for folder in (run, *retrained)], None, "exact_match")
    assert Comparison.from_json(json.loads(path.read_text(encoding="utf-8"))) == comparison
    return comparison


def test_each_encoder_has_its_differences_in_both_ways(found: Comparison) -> None:
    assert found.encoders == ("a", "b", "c")
    masks = ["a off", "a shuffled", "b off", "b shuffled", "c off", "c shuffled"]
    assert list(found.against) == ["off", "shuffled", "blank", *masks, "without a", "without b", "without c"]
    effects = {(one.encoder, one.question_type): one for one in encoder_effects(found)}
    assert [key for key in effects if key[0] == "a"] == [("a", "colour"), ("a", "style"), ("a", "all")]
    for encoder, off, shuffled, without in (("a", 4, 6, 20), ("b", 18, 18, 19), ("c", 12, 13, 12)):
        effect = effects[encoder, "style"]
        for one, right in ((effect.off, off), (effect.shuffled, shuffled), (effect.without, without)):
            assert one is not None
            assert one.difference.value == pytest.approx(1 - right / PAINTINGS)
            assert (one.wins, one.losses) == (PAINTINGS - right, 0)


def test_p_values_and_intervals_are_scipys(found: Comparison) -> None:
    """Of 0 and 1 a painting, all won alike, exchanged signs are a sign test; the other type has no difference."""
    effects = {(one.encoder, one.question_type): one for one in encoder_effects(found)}
    for (encoder, way), right in {
        ("c", "off"): 12,
        ("c", "shuffled"): 13,
        ("c", "without"): 12,
        ("b", "off"): 18,
    }.items():
        one = getattr(effects[encoder, "style"], way)
        lost = PAINTINGS - right
        assert one.p_value == pytest.approx(stats.binomtest(lost, lost).pvalue)
        assert one.p_holm == pytest.approx(min(1, 2 * one.p_value))  # of two question types
        drawn = stats.bootstrap(
            (np.arange(PAINTINGS) >= right,),
            np.mean,
            method="percentile",
            n_resamples=4000,
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = drawn.low, drawn.high
        if lost < 6:  # draws of so few know too little, and Wilson's limit is for what none of the paintings showed
            share = proportion_confint(0, PAINTINGS, method="wilson")[1]
            low = min(low, lost / PAINTINGS - share * (1 + lost / PAINTINGS))
        # Expanded percentiles of 1000 draws, in steps of 1/20.
        assert (one.difference.low, one.difference.high) == pytest.approx((low, high), abs=0.06)


def test_masking_and_retraining_rank_a_redundant_encoder_differently(found: Comparison) -> None:
    *each, ranks = encoder_verdicts(found)
    assert [sentence.split(":")[0] for sentence in each] == ["encoder a", "encoder b", "encoder c"]
    assert each[0].startswith("encoder a: with its part off, the model is worse by 0.40 [")
    assert "trained without it, no difference is shown, 0.00 [" in each[0]
    assert "trained without it, the model is worse by 0.20 [" in each[2]
    assert ranks.startswith(
        "encoders: a > c > b by masking, c > b > a by retraining; masking asks what the trained model"
    )
    assert verdicts(found)[-4:] == [*each, ranks]
    assert format_encoders(found) in format_comparison(found)
    assert "on - trained without" in format_encoders(found)


def test_what_was_not_evaluated_is_left_open(tmp_path: Path) -> None:
    run = write_encoders_run(tmp_path / "run", ON | {"a-off": 4}, "ab")
    comparison, _ = compare_runs([open_run(run)], None, "exact_match")
    (sentence,) = encoder_verdicts(comparison)
    assert sentence.endswith("whether a model trained without it does worse is open, since none was compared")
    assert format_encoders(comparison).splitlines()[1].split()[-4:] == ["-", "-", "-", "-"]
    assert [cell is None for cell in encoder_rows(comparison)[0]["cells"]] == [False, True, True]


def test_one_encoder_has_none_of_it(tmp_path: Path) -> None:
    run = write_encoders_run(tmp_path / "run", ON | {"a-off": 4}, "a")
    comparison, path = compare_runs([open_run(run)], None, "exact_match")
    assert list(comparison.against) == ["off", "shuffled", "blank"]
    assert "encoders" not in json.loads(path.read_text(encoding="utf-8"))
    assert (encoder_verdicts(comparison), format_encoders(comparison)) == ([], "")


def test_several_seeds_of_a_retrained_run_are_no_pairs(tmp_path: Path) -> None:
    run = write_encoders_run(tmp_path / "run", ON | MASKED, "abc")
    without = [write_encoders_run(tmp_path / f"w{s}", {"on": 10 + s}, "bc", training={"seed": s}) for s in (1, 3)]
    comparison, _ = compare_runs([open_run(folder) for folder in (run, *without)], None, "exact_match")
    assert comparison.seeds is not None
    assert len(comparison.seeds.against["without a"].overall.differences) == 1  # of the one run, to the mean of the two
    assert comparison.seeds.against["without a"].by_type["style"].mean == pytest.approx(1 - 12 / PAINTINGS)
    assert "2 seeds of the run without a are few" in (comparison.seeds.warning or "")
    assert "a off" in comparison.seeds.against


def test_a_mask_that_a_seed_lacks_is_told_to_be_of_the_first_alone(tmp_path: Path) -> None:
    masked = {"a-off": 4, "a-shuffled": 20, "b-off": 4}
    runs = [write_encoders_run(tmp_path / f"r{s}", ON | masked, "ab", training={"seed": s}) for s in (1, 2)]
    for ablation in ("a-off", "a-shuffled"):
        (runs[1] / "eval" / f"test-{ablation}" / "predictions.csv").unlink()
    comparison, _ = compare_runs([open_run(folder) for folder in runs], None, "exact_match")
    of_a, of_b, *_ = encoder_verdicts(comparison)
    off, shuffled, _ = of_a.split("; ")
    assert off.startswith("encoder a: with its part off, the model is worse by 0.40 [")
    assert shuffled.startswith("with another painting's features, no difference is shown, 0.00 [")
    assert all(clause.endswith("] (of the first seed alone)") for clause in (off, shuffled))
    assert "first seed" not in of_b
