"""The loss of a batch: of one head, or of several whose labels may be missing.

Letters in shapes are explained in `artkv.batch`; O are the classes of all heads, one after the other.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from artkv.art_encoder.timm_parts import soft_target_loss
from artkv.distributed import World

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of_heads(class_counts: Sequence[int], world: World) -> Loss:
    """The loss, shape (), of logits (I, O) against soft targets (I, O) of this rank's pictures.

    class_counts: of each head. One head: the mean cross-entropy, every picture has a label. The mean over ranks of what
    they return is the loss of all their pictures.
    """
    if len(class_counts) == 1:
        return soft_target_loss()
    return lambda logits, targets: masked_loss(logits, targets, class_counts, world)


def masked_loss(logits: Tensor, targets: Tensor, class_counts: Sequence[int], world: World) -> Tensor:
    """The sum over heads of their mean cross-entropies, each over the pictures of all ranks that have its label.

    A picture counts by the sum of its target: 1 with a label, 0 without, the share of the labelled one where two were
    mixed. A head that no picture has a label for adds nothing. Times the number of ranks, so that the ranks' mean is
    the loss.
    """
    sums, counts = [], []
    for scores, wanted in zip(logits.split(list(class_counts), 1), targets.split(list(class_counts), 1), strict=True):
        sums.append(-(wanted * torch.log_softmax(scores, dim=1)).sum())
        counts.append(wanted.sum())
    total = world.all_reduce_sum(torch.stack(counts).detach())
    # a head without labels has a sum of 0, whatever it is divided by
    return (torch.stack(sums) / torch.where(total > 0, total, 1)).sum() * world.size


def precision(device: torch.device) -> torch.autocast:
    """What a network computes in: bfloat16 where a GPU has it, else float32."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16)
