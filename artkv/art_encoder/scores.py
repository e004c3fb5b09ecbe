"""How well a classifier tells its validation pictures apart, for each head and each of its classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from artkv.art_encoder.batches import UNLABELLED
from artkv.art_encoder.data import Head
from artkv.distributed import World


@dataclass(frozen=True)
class ClassScore:
    """How often the `count` validation pictures of a class are recognised, first or among the first five."""

    label: str
    count: int
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class HeadScores:
    """Validation scores of a head, over the pictures with a label of it.

    `mean_class_top1` weighs every class alike, `loss` is the cross-entropy in nats.
    """

    name: str
    loss: float
    top1: float
    top5: float
    mean_class_top1: float
    per_class: tuple[ClassScore, ...]


@dataclass(frozen=True)
class ArtEncoderScores:
    """Validation scores of all heads."""

    heads: tuple[HeadScores, ...]

    @property
    def loss(self) -> float:
        """The sum over heads, in nats."""
        return sum(head.loss for head in self.heads)

    @property
    def top1(self) -> float:
        """The mean over heads."""
        return sum(head.top1 for head in self.heads) / len(self.heads)

    @property
    def top5(self) -> float:
        """The mean over heads."""
        return sum(head.top5 for head in self.heads) / len(self.heads)

    def metrics(self) -> dict[str, float]:
        """By the names of metrics.jsonl: of all heads, and of each where there are several."""
        of_all = {"validation_loss": self.loss, "top1": self.top1, "top5": self.top5}
        for head in self.heads:
            if len(self.heads) > 1:
                of_all |= {
                    f"{head.name}_loss": head.loss,
                    f"{head.name}_top1": head.top1,
                    f"{head.name}_top5": head.top5,
                }
            of_all[f"mean_{head.name}_top1"] = head.mean_class_top1
        return of_all

    def to_tree(self) -> dict[str, Any]:
        """As JSON has it; of styles alone in the form of files from before there were heads."""
        trees = [
            {
                "loss": head.loss,
                "top1": head.top1,
                "top5": head.top5,
                "mean_style_top1": head.mean_class_top1,
                "per_style": [
                    {"style": one.label, "count": one.count, "top1": one.top1, "top5": one.top5}
                    for one in head.per_class
                ],
            }
            for head in self.heads
        ]
        if len(self.heads) == 1 and self.heads[0].name == "style":
            return trees[0]
        return {"heads": {head.name: tree for head, tree in zip(self.heads, trees, strict=True)}}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> "ArtEncoderScores":
        """What `to_tree` wrote; KeyError, TypeError, ValueError or AttributeError where it did not."""
        trees = tree.get("heads", {"style": tree})
        return ArtEncoderScores(
            tuple(
                HeadScores(
                    name,
                    float(one["loss"]),
                    float(one["top1"]),
                    float(one["top5"]),
                    float(one["mean_style_top1"]),
                    tuple(
                        ClassScore(part["style"], part["count"], part["top1"], part["top5"])
                        for part in one["per_style"]
                    ),
                )
                for name, one in trees.items()
            )
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    heads: Sequence[Head],
    world: World,
) -> ArtEncoderScores:
    """Scores a classifier in eval mode on pictures that it was not trained on, each counted once.

    In float32, as the encoder is used: logits of several classes are often equal in bfloat16, which counts as wrong.
    loader: this rank's pictures, every `world.size`-th of all from its rank on. All ranks return the scores of all.
    """
    model.eval()
    counts = [len(head.classes) for head in heads]
    found: list[Tensor] = []
    for pixels, labels in loader:
        labels = labels.to(world.device).reshape(len(pixels), len(heads))
        logits = model(pixels.to(world.device))
        columns = []
        for number, scores in enumerate(logits.split(counts, dim=1)):
            truth = labels[:, number]
            wanted = truth.clamp(min=0)
            true_scores = scores.gather(1, wanted[:, None])
            # equal logits count against the model, so that a constant output is never right
            rank = (scores >= true_scores).sum(dim=1) - 1
            loss = nn.functional.cross_entropy(scores, wanted, reduction="none")
            columns.append(torch.stack([truth.double(), rank.double(), loss.double()], dim=1))
        found.append(torch.stack(columns, dim=1))
    own = torch.cat(found).cpu() if found else torch.zeros(0, len(heads), 3, dtype=torch.float64)
    parts = world.gather(own)
    together = torch.zeros(sum(map(len, parts)), len(heads), 3, dtype=torch.float64)
    for rank, part in enumerate(parts):
        together[rank :: world.size] = part
    return ArtEncoderScores(tuple(_scores_of_head(head, together[:, number]) for number, head in enumerate(heads)))


def _scores_of_head(head: Head, found: Tensor) -> HeadScores:
    """found: label, rank of the true class and loss of each picture, (pictures, 3)."""
    found = found[found[:, 0] != UNLABELLED]
    truth, rank, loss = found[:, 0].long(), found[:, 1].long(), found[:, 2].float()
    per_class = []
    for index, label in enumerate(head.classes):
        own = rank[truth == index]
        count = len(own)
        per_class.append(
            ClassScore(
                label,
                count,
                (own < 1).float().mean().item() if count else None,
                (own < 5).float().mean().item() if count else None,
            )
        )
    present = [score.top1 for score in per_class if score.top1 is not None]
    return HeadScores(
        name=head.name,
        loss=loss.mean().item(),
        top1=(rank < 1).float().mean().item(),
        top5=(rank < 5).float().mean().item(),
        mean_class_top1=sum(present) / len(present),
        per_class=tuple(per_class),
    )
