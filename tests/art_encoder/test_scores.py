"""Scores of known logits, counted by hand, and as JSON has them."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from artkv.art_encoder.data import Head
from artkv.art_encoder.scores import ArtEncoderScores, ClassScore, evaluate
from artkv.distributed import single_process

HEADS = (Head("style", tuple("abcdefg")), Head("genre", ("x", "y")))
STYLES = torch.tensor([0, 0, 1, 6, -1])
GENRES = torch.tensor([0, 1, -1, -1, 1])


def logits() -> Tensor:
    """Five pictures: style right, second of all, equal to all others, last; genre right, wrong and right."""
    scores = torch.zeros(5, 9)
    scores[0, 0] = 2.0
    scores[1, :2] = torch.tensor([1.0, 3.0])
    scores[3, :6] = 1.0
    scores[:, 7:] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [5.0, 5.0], [5.0, 5.0], [0.0, 1.0]])
    return scores


def scored(heads: tuple[Head, ...], labels: Tensor, columns: slice) -> ArtEncoderScores:
    """The model passes its input on."""
    loader = DataLoader(TensorDataset(logits()[: len(labels), columns], labels), batch_size=2)
    return evaluate(nn.Identity(), loader, heads, single_process(torch.device("cpu")))


def test_each_head_is_scored_on_the_pictures_that_have_its_label() -> None:
    scores = scored(HEADS, torch.stack([STYLES, GENRES], dim=1), slice(None))
    style, genre = scores.heads
    # equal logits count against the model: the third is right nowhere, not even among five of seven
    assert style.per_class[0] == ClassScore("a", 2, 0.5, 1.0)
    assert style.per_class[1] == ClassScore("b", 1, 0.0, 0.0)
    assert style.per_class[2] == ClassScore("c", 0, None, None)
    assert (style.top1, style.top5) == (0.25, 0.5)
    assert style.mean_class_top1 == pytest.approx((0.5 + 0 + 0) / 3)
    assert genre.top1 == pytest.approx(2 / 3)
    assert genre.mean_class_top1 == pytest.approx((1 + 0.5) / 2)
    known = STYLES >= 0
    expected = nn.functional.cross_entropy(logits()[known, :7].double(), STYLES[known])
    assert style.loss == pytest.approx(expected.item(), abs=1e-6)  # float32
    assert scores.loss == style.loss + genre.loss
    assert scores.top1 == (style.top1 + genre.top1) / 2
    assert scores.metrics()["mean_genre_top1"] == genre.mean_class_top1
    assert ArtEncoderScores.from_tree(json.loads(json.dumps(scores.to_tree()))) == scores


def test_styles_alone_are_written_as_they_were_before_there_were_heads() -> None:
    scores = scored(HEADS[:1], STYLES[:4], slice(0, 7))
    tree = scores.to_tree()
    assert list(tree) == ["loss", "top1", "top5", "mean_style_top1", "per_style"]
    assert tree["per_style"][0] == {"style": "a", "count": 2, "top1": 0.5, "top5": 1.0}
    assert ArtEncoderScores.from_tree(tree) == scores
    assert list(scores.metrics()) == ["validation_loss", "top1", "top5", "mean_style_top1"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_logits_that_bfloat16_cannot_tell_apart_are_told_apart() -> None:
    device = torch.device("cuda")
    model = nn.Linear(2, 7, bias=False, device=device)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[10.0, 0.01], *[[10.0, 0.0]] * 6]))
    loader = [(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))]
    assert evaluate(model, loader, HEADS[:1], single_process(device)).top1 == 1.0
