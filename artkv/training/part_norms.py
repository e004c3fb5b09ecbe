"""How hard training pulls at each part of what trains, and how far a step moves it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from artkv.kv_modulation import GATE

_CROSS_ATTENTION = re.compile(r"qformer\.encoder\.layer\.(\d+)\.crossattention\.")


class Stretch(NamedTuple):
    """Elements of a flat tensor of masters that belong to one part, from `start` to before `end`."""

    part: str
    start: int
    end: int


def parts_of(names: Iterable[str]) -> dict[str, str]:
    """The part that each trainable belongs to, by its name.

    `generator`, `gate`, `cross_attention_Z` (Z counts the Q-Former's cross-attention layers from 0), `lora_opt` and
    `lora_qformer`.
    """
    names = list(names)
    blocks = sorted({int(found[1]) for name in names if (found := _CROSS_ATTENTION.match(name))})
    return {name: _part_of(name, blocks) for name in names}


def _part_of(name: str, blocks: Sequence[int]) -> str:
    if ".lora_" in name:
        return "lora_opt" if name.startswith("language_model.") else "lora_qformer"
    if found := _CROSS_ATTENTION.match(name):
        return f"cross_attention_{blocks.index(int(found[1]))}"
    return "gate" if name == GATE else "generator"


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same elements in order, with neighbours of one part in one stretch."""
    result: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda one: one.start):
        if result and (result[-1].part, result[-1].end) == (stretch.part, stretch.start):
            result[-1] = result[-1]._replace(end=stretch.end)
        else:
            result.append(stretch)
    return result


class PartNorms:
    """Sums of squares of gradient, change and weights of each part, in the optimizer step that is asked for.

    It stands around the steps of a torch optimizer, and does nothing in those that nobody asked for. In one that is
    asked for it copies a tensor of masters at a time; nothing waits for the device.

    optimizer: of flat masters. stretches: of each of these, this rank's elements.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, stretches: Mapping[Tensor, Sequence[Stretch]]) -> None:
        self._stretches = stretches
        self._is_asked = self._is_measured = False
        self._before: dict[Tensor, Tensor] = {}
        self._norms: dict[str, list[Tensor]] = {}  # of each part's stretches, three each: gradient, change, weights
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def ask(self, is_asked: bool) -> None:
        """Whether the next step is to be measured; forgets the last one."""
        self._is_asked, self._is_measured = is_asked, False
        self._norms = {}

    def read(self, parts: Sequence[str], device: torch.device) -> Tensor | None:
        """(3, parts) float32 on `device`: this rank's sums of squares of gradient, change and weights after the step.

        Gradients are as clipped. None where no step was measured: none was asked for, or it was skipped.
        """
        if not self._is_measured:
            return None
        nothing = torch.zeros(3, device=device)
        by_part = [nothing] * len(parts)
        for place, part in enumerate(parts):
            if norms := self._norms.get(part):
                by_part[place] = torch.stack(norms).square().view(-1, 3).sum(dim=0).to(device, non_blocking=True)
        return torch.stack(by_part, dim=1)

    def _masters(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """What this step changes; DeepSpeed makes a step of each parameter group."""
        every = [master for group in optimizer.param_groups for master in group["params"]]
        return [master for master in every if self._is_asked and master.grad is not None and master in self._stretches]

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._before = {master: master.detach().clone() for master in self._masters(optimizer)}

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for master, before in self._before.items():
            assert master.grad is not None
            stretches, whole = self._stretches[master], (master.grad, before.sub_(master.detach()), master.detach())
            pieces = [one[start:end] for _, start, end in stretches for one in whole]
            # One call for all of them: a card waits where the host takes long to launch.
            norms = torch._foreach_norm(pieces) if pieces else ()
            for place, stretch in enumerate(stretches):
                self._norms.setdefault(stretch.part, []).extend(norms[3 * place : 3 * place + 3])
        self._before = {}
        self._is_measured = self._is_asked  # also where this rank has nothing but padding


def part_metrics(squares: Tensor, parts: Sequence[str], grad_norm: float | Tensor) -> dict[str, Tensor]:
    """`grad_norm/PART` and `update_to_weight/PART`, shape () each.

    squares: (3, parts), summed over ranks. grad_norm: of all parts together before clipping, to which the parts' are
    scaled: clipping scales all alike. update_to_weight: the length of the step's change over that of the weights after
    it (so a part that starts at zero begins at 1).
    """
    grad, change, weight = squares.sqrt()
    tiny = torch.finfo(grad.dtype).tiny
    grad = grad * (grad_norm / squares[0].sum().sqrt().clamp_min(tiny))
    ratio = change / weight.clamp_min(tiny)
    metrics = {f"grad_norm/{part}": grad[place] for place, part in enumerate(parts)}
    return metrics | {f"update_to_weight/{part}": ratio[place] for place, part in enumerate(parts)}
