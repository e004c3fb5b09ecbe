"""Passes through OPT by answers' lengths, against what is counted by hand."""

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("lengths", "leave", "steps", "rest"),
    [
        ([3, 3, 30], 0, 30, []),
        ([3, 3, 30], 1, 9, [21]),  # all three go on at the first layout, one at the second
        ([1, 1, 30], 1, 1, [29]),
        ([3, 20, 30, 60], 2, 33, [27]),  # three go on at the second and the third
        ([9, 9], 1, 9, []),
        ([1], 5, 1, []),
    ],
)
def test_a_batch_leaves_few_at_a_layout(
    module: Any, lengths: list[int], leave: int, steps: int, rest: list[int]
) -> None:
    found, left = module("answer_passes").steps_of(np.array(lengths), leave)
    assert (found, left.tolist()) == (steps, rest)


def test_what_batches_leave_goes_on_together(module: Any) -> None:
    passes = module("answer_passes").passes
    lengths = np.array([3, 3, 3, 30, 3, 3, 3, 40])
    assert passes(lengths, 4, None) == 30 + 40
    # Nine steps and one left; nine, another one left; then both, half a batch, with 21 and 31 tokens to come.
    assert passes(lengths, 4, 4) == 9 + 9 + 31
    assert passes(lengths, 2, 4) == 3 + 30 + 3 + 40  # an eighth of two is none
    assert passes(lengths, 8, 4) == 40  # of one batch nothing waits for another
