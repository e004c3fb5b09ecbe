"""Whether what is chosen with a probability of 0.8 is right in 8 of 10 questions.

Letters in array names are explained in `artkv.batch`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

NUM_BINS = 15


@dataclass(frozen=True)
class Bin:
    """The questions whose choice has a probability above `low`, up to `high`.

    count: of them. confidence: their mean probability. accuracy: the share that is right. Both 0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """ece: the mean distance of accuracy and confidence over bins, weighted by their questions. bins: all of them."""

    ece: float
    bins: tuple[Bin, ...]

    @property
    def mean_confidence(self) -> float:
        """Of all questions."""
        return sum(one.count * one.confidence for one in self.bins) / sum(one.count for one in self.bins)

    def to_json(self) -> dict[str, Any]:
        """`{"ece", "bins": [{"low", "high", "count", "confidence", "accuracy"}, ...]}`."""
        return {"ece": self.ece, "bins": [vars(one) for one in self.bins]}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(tree["ece"], tuple(Bin(**one) for one in tree["bins"]))


def calibrate(confidence_Q: NDArray[np.float64], is_right_Q: NDArray[np.bool_]) -> Calibration:
    """The expected calibration error over 15 bins of equal width, (low, high], as of Guo et al. 2017.

    confidence_Q: the probability of each choice, above 0 and at most 1. is_right_Q: whether it is right. Raises
    ValueError for no questions.
    """
    if not len(confidence_Q):
        raise ValueError("confidence_Q is empty: there is nothing to calibrate")
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    place_Q = np.clip(np.searchsorted(edges, confidence_Q, side="left") - 1, 0, NUM_BINS - 1)
    bins = []
    for place in range(NUM_BINS):
        here_Q = place_Q == place
        count = int(here_Q.sum())
        confidence = float(confidence_Q[here_Q].mean()) if count else 0.0
        accuracy = float(is_right_Q[here_Q].mean()) if count else 0.0
        bins.append(Bin(float(edges[place]), float(edges[place + 1]), count, confidence, accuracy))
    gaps = [one.count * abs(one.accuracy - one.confidence) for one in bins if one.count]
    return Calibration(sum(gaps) / len(confidence_Q), tuple(bins))
