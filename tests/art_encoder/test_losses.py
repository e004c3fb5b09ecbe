"""The loss of several heads against torch's own cross-entropy, with labels missing and pictures mixed."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from artkv.art_encoder.losses import loss_of_heads, masked_loss
from artkv.art_encoder.timm_parts import masked_target_mixer, target_mixer
from artkv.distributed import single_process

COUNTS = (5, 3, 7)
WORLD = single_process(torch.device("cpu"))


def batch(pictures: int = 12, missing: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, labels of three heads, and logits, in float64."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.randint(count, (pictures,), generator=generator) for count in COUNTS], dim=1)
    labels[torch.rand(labels.shape, generator=generator) < missing] = -1
    logits = torch.randn(pictures, sum(COUNTS), generator=generator, dtype=torch.float64)
    return torch.rand(pictures, 3, 4, 4, generator=generator), labels, logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_head_is_torchs_cross_entropy_of_the_pictures_with_a_label(smoothing: float) -> None:
    pixels, labels, logits = batch()
    _, targets = masked_target_mixer(COUNTS, smoothing, 0, 0, 0)(pixels, labels)
    logits.requires_grad_()
    loss = masked_loss(logits, targets.double(), COUNTS, WORLD)
    expected = sum(
        cross_entropy(scores, labels[:, number], ignore_index=-1, label_smoothing=smoothing)
        for number, scores in enumerate(logits.split(COUNTS, 1))
    )
    # float64 logits with float32 targets, whose rows add up to 1 within 1e-7; the worst seen is 2e-9
    torch.testing.assert_close(loss, expected, atol=1e-7, rtol=0)
    (ours,), (theirs,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_mixed_pictures_count_by_the_share_that_has_a_label() -> None:
    pixels, labels, logits = batch()
    before = pixels.clone()
    np.random.seed(5)
    mixed, targets = masked_target_mixer(COUNTS, 0.0, 0.4, 0, 1.0)(pixels, labels)
    np.random.seed(5)
    expected_pixels, identity = target_mixer(len(before), 0.0, 0.4, 0, 1.0)(before, torch.arange(len(before)))
    assert torch.equal(mixed, expected_pixels)
    share = identity[0, 0].item()
    assert 0 < share < 1
    loss = masked_loss(logits, targets.double(), COUNTS, WORLD)
    expected = torch.zeros((), dtype=torch.float64)
    for number, scores in enumerate(logits.split(COUNTS, 1)):
        own, other = labels[:, number], labels[:, number].flip(0)
        weights = torch.cat([share * (own >= 0), (1 - share) * (other >= 0)])
        each = cross_entropy(scores.repeat(2, 1), torch.cat([own, other]).clamp(min=0), reduction="none")
        expected += (weights * each).sum() / weights.sum()
    # shares in float32
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_one_head_is_what_several_would_be_of_it() -> None:
    pixels, labels, logits = batch(missing=0)
    _, targets = masked_target_mixer(COUNTS[:1], 0.1, 0, 0, 0)(pixels, labels[:, :1])
    alone = loss_of_heads(COUNTS[:1], WORLD)(logits[:, :5], targets)
    # the rows of float32 targets add up to 1 within 1e-7
    torch.testing.assert_close(alone, masked_loss(logits[:, :5], targets, COUNTS[:1], WORLD), atol=1e-6, rtol=0)


def test_a_head_without_labels_in_a_batch_adds_nothing() -> None:
    pixels, labels, logits = batch()
    labels[:, 1] = -1
    _, targets = masked_target_mixer(COUNTS, 0.1, 0, 0, 0)(pixels, labels)
    logits.requires_grad_()
    loss = masked_loss(logits, targets, COUNTS, WORLD)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 5:8], torch.zeros(12, 3, dtype=torch.float64))
    assert logits.grad[:, :5].abs().max() > 0
