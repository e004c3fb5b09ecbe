"""The learning rate against transformers' schedule."""

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from artkv.training.loop import learning_rate


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_equal_steps_give_transformers_linear_schedule(warmup_steps: int) -> None:
    steps, batch, peak = 10, 4, 0.5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, steps)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [
        learning_rate(peak, step * batch, (step + 1) * batch, warmup_steps * batch, steps * batch)
        for step in range(steps)
    ]
    # transformers' first step of a warm-up does not move at all; ours are one step ahead while warming up.
    assert ours[:warmup_steps] == pytest.approx(expected[1:warmup_steps] + [peak] * bool(warmup_steps))
    assert ours[warmup_steps:] == pytest.approx(expected[warmup_steps:])
    assert all(lr > 0 for lr in ours)


def test_a_warmup_longer_than_the_run_never_reaches_the_peak() -> None:
    rates = [learning_rate(1.0, q, q + 1, 100, 10) for q in range(10)]
    assert rates == pytest.approx([(q + 1) / 100 for q in range(10)])
