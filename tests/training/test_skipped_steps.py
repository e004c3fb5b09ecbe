"""Steps that are skipped on the device, against DeepSpeed's own way."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from artkv.training.skipped_steps import SkippedSteps

CLIP = 0.5


class ZeroLike(SimpleNamespace):
    """What `SkippedSteps` knows of DeepSpeed's optimizer, with one fp32 master."""


def zero_optimizer(is_fused: bool = True, cpu_offload: bool = False) -> ZeroLike:
    torch.manual_seed(0)
    master = nn.Parameter(torch.randn(6))
    adam = torch.optim.AdamW([master], lr=0.1, fused=is_fused)
    return ZeroLike(
        optimizer=adam, single_partition_of_fp32_groups=[master], cpu_offload=cpu_offload, averaged_gradients={},
        clip_grad=CLIP, overflow=False, scaled_global_norm=None, unscale_and_clip_grads=None, check_grad_overflow=True,
    )  # fmt: skip


def take_step(zero: ZeroLike, gradient: torch.Tensor) -> torch.Tensor:
    """As DeepSpeed's `step` does it: norm, clipping, Adam."""
    master = zero.single_partition_of_fp32_groups[0]
    zero.averaged_gradients[0] = list(gradient.split([2, 4]))
    norm = zero.scaled_global_norm()
    master.grad = gradient.clone()
    zero.unscale_and_clip_grads([master.grad], norm)
    zero.optimizer.step()
    return norm


@pytest.mark.usefixtures("one_process")
def test_what_is_not_finite_changes_nothing_and_is_counted() -> None:
    zero, reference = zero_optimizer(), zero_optimizer()
    skipped = SkippedSteps(zero)
    skipped.start_from(5, 2)
    assert zero.check_grad_overflow is False
    assert skipped.counts(waits=True) == skipped.counts(waits=False) == (5, 2)
    expected = [(5, 2), (6, 3), (7, 4), (7, 0), (8, 1), (8, 0)]
    for number, bad in enumerate([torch.inf, torch.nan, None, -torch.inf, None]):
        gradient = torch.randn(6, generator=torch.Generator().manual_seed(number))
        if bad is not None:
            gradient[3] = bad
        norm = take_step(zero, gradient)
        skipped.step_done()
        assert skipped.counts(waits=True) == expected[number + 1]
        assert skipped.counts(waits=False) == expected[number]
        if bad is None:  # the same as torch's own clipping and step, as if the others had never been
            master = reference.single_partition_of_fp32_groups[0]
            master.grad = gradient.clone()
            expected_norm = nn.utils.clip_grad_norm_([master], CLIP)
            reference.optimizer.step()
            torch.testing.assert_close(norm, expected_norm)
        else:
            assert norm == torch.inf
    torch.testing.assert_close(
        zero.single_partition_of_fp32_groups[0], reference.single_partition_of_fp32_groups[0], atol=1e-6, rtol=1e-5
    )
    (state,), (other,) = zero.optimizer.state.values(), reference.optimizer.state.values()
    assert state["step"] == other["step"] == 2


@pytest.mark.usefixtures("one_process")
def test_without_clipping_gradients_stay() -> None:
    zero = zero_optimizer()
    SkippedSteps(zero)
    zero.clip_grad = 0.0
    gradient = torch.full((6,), 100.0)
    zero.unscale_and_clip_grads([gradient], torch.tensor(245.0))
    assert gradient.tolist() == [100.0] * 6


@pytest.mark.parametrize("make", [lambda: zero_optimizer(is_fused=False), lambda: zero_optimizer(cpu_offload=True)])
def test_deepspeeds_way_stays_where_adam_cannot_skip(make: Callable[[], Any]) -> None:
    zero = make()
    skipped = SkippedSteps(zero)
    assert zero.scaled_global_norm is None
    assert zero.check_grad_overflow is True
    for overflow, counts in ((True, (1, 1)), (True, (2, 2)), (False, (2, 0))):
        zero.overflow = overflow
        skipped.step_done()
        assert skipped.counts(waits=True) == counts
