"""Optimizer steps whose gradient is not finite: they change nothing, and are counted without waiting for the device.

DeepSpeed has the host read the gradient's norm three times a step, and until the host has launched what comes after it
the device is idle. Here the norm stays on the device: clipping reads it there, and so does torch's fused Adam, which
leaves weights, moments and its count of steps alone where it is told of an overflow.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from artkv.distributed import ToHost


class SkippedSteps:
    """Has DeepSpeed's ZeRO optimizer skip and clip on the device, where its Adam can, and counts what was skipped.

    Where the optimizer is offloaded or not fused DeepSpeed's own way stays, with the same outcome.
    """

    def __init__(self, zero_optimizer: Any) -> None:
        self._optimizer = zero_optimizer
        masters: Tensor = zero_optimizer.single_partition_of_fp32_groups[0]
        self._is_on_device = not zero_optimizer.cpu_offload and bool(zero_optimizer.optimizer.defaults.get("fused"))
        # How many steps were skipped, and how many of these in a row up to now; and both on their way to the host.
        self._counts = torch.zeros(2, device=masters.device)
        self._before = self._now = ToHost(self._counts)
        self._overflow = torch.zeros((), device=masters.device)
        if self._is_on_device:
            zero_optimizer.check_overflow = lambda partition_gradients: None  # the norm, shared by all ranks, says it
            zero_optimizer.check_grad_overflow = False
            zero_optimizer.scaled_global_norm = self._total_norm
            zero_optimizer.unscale_and_clip_grads = self._clip

    def start_from(self, skipped: int, in_a_row: int) -> None:
        """Goes on from the counts of a run that is resumed."""
        self._counts = torch.tensor([skipped, in_a_row], dtype=torch.float32, device=self._counts.device)
        self._before = self._now = ToHost(self._counts)

    def step_done(self) -> None:
        """Counts the optimizer step that is over."""
        overflow = self._overflow
        if not self._is_on_device:
            overflow = torch.full_like(overflow, float(self._optimizer.overflow))
        skipped, in_a_row = self._counts.unbind()
        self._counts = torch.stack([skipped + overflow, (in_a_row + 1) * overflow])
        self._before, self._now = self._now, ToHost(self._counts)

    def counts_on_device(self) -> tuple[Tensor, Tensor]:
        """What `counts` says of the last step, shape () each."""
        skipped, in_a_row = self._counts.unbind()
        return skipped, in_a_row

    def counts(self, waits: bool) -> tuple[int, int]:
        """How many steps were skipped, and how many of these in a row up to now.

        waits: for the device to be done with the last step. Else this is what was so before that step.
        """
        skipped, in_a_row = (self._now if waits else self._before).read()
        return int(skipped), int(in_a_row)

    def _total_norm(self, norm_type: int = 2) -> Tensor:
        """The norm of all ranks' gradients, shape (); inf where it is not finite."""
        gradients = [gradient for group in self._optimizer.averaged_gradients.values() for gradient in group or ()]
        squared = torch.nn.utils.get_total_norm(gradients, norm_type).square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
        is_finite = norm.isfinite()
        self._overflow = (~is_finite).float()
        self._optimizer.optimizer.found_inf = self._overflow
        return torch.where(is_finite, norm, torch.inf)

    def _clip(self, flat_gradients: Sequence[Tensor], total_norm: Tensor) -> None:
        """As DeepSpeed's, for gradients that are not scaled."""
        most = self._optimizer.clip_grad
        if most == 0:
            return
        scale = 1.0 / ((total_norm + 1e-6) / most).clamp(min=1.0)
        for gradient in flat_gradients:
            gradient.mul_(scale)
