"""The expected calibration error against brute force over bins."""

import json
import math

import numpy as np
import pytest

from artkv.evaluation.calibration import NUM_BINS, Calibration, calibrate


def brute_force(confidence_Q: np.ndarray, is_right_Q: np.ndarray) -> float:
    """Guo et al. 2017, equation 3: questions sorted into ((m - 1) / M, m / M] one by one."""
    error = 0.0
    for m in range(1, NUM_BINS + 1):
        inside = [q for q, p in enumerate(confidence_Q) if (m - 1) / NUM_BINS < p <= m / NUM_BINS]
        if inside:
            accuracy = np.mean([is_right_Q[q] for q in inside])
            error += len(inside) / len(confidence_Q) * abs(accuracy - np.mean([confidence_Q[q] for q in inside]))
    return error


@pytest.mark.parametrize("count", [1, 7, 500])
@pytest.mark.parametrize("seed", range(5))
def test_ece_is_that_of_brute_force(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence_Q = rng.beta(2, 1, count)
    is_right_Q = rng.random(count) < confidence_Q**2
    calibration = calibrate(confidence_Q, is_right_Q)
    # fp64; sums in another order.
    assert calibration.ece == pytest.approx(brute_force(confidence_Q, is_right_Q), rel=1e-12, abs=1e-15)
    assert sum(one.count for one in calibration.bins) == count
    assert calibration.mean_confidence == pytest.approx(confidence_Q.mean(), rel=1e-12)


def test_edges_belong_to_the_bin_below() -> None:
    edges_Q = np.arange(1, NUM_BINS + 1) / NUM_BINS
    for confidence_Q in (edges_Q, np.nextafter(np.arange(NUM_BINS) / NUM_BINS, 1)):
        bins = calibrate(confidence_Q, np.ones(NUM_BINS, dtype=bool)).bins
        assert [one.count for one in bins] == [1] * NUM_BINS
    assert (bins[0].low, bins[-1].high) == (0, 1)


def test_certain_and_always_right_or_wrong() -> None:
    assert calibrate(np.ones(4), np.ones(4, dtype=bool)).ece == 0
    assert calibrate(np.ones(4), np.zeros(4, dtype=bool)).ece == 1
    half = calibrate(np.full(4, 0.5), np.array([True, False, True, False]))
    assert half.ece == 0
    assert [one.count for one in half.bins if one.count] == [4]


def test_it_comes_back_from_json_and_empty_bins_are_numbers() -> None:
    calibration = calibrate(np.array([0.3, 0.9]), np.array([True, False]))
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    assert not any(math.isnan(one.accuracy) for one in calibration.bins)


def test_nothing_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="confidence_Q is empty"):
        calibrate(np.zeros(0), np.zeros(0, dtype=bool))
