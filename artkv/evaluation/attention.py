"""Where the Q-Former's query tokens look in a painting, and how much of that is at the prefix.

Letters in tensor names are explained in `artkv.batch`; g is the edge of the ViT's grid of patches, so N = 1 + g g.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artkv.batch import PaintingFeatures
from artkv.datasets.question_set import QuestionSet
from artkv.evaluation.answering import PAINTINGS_AT_ONCE, features_of
from artkv.kv_modulation import LayerAttention
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PaintingAttention:
    """The attention of one painting's cross-attention: weights on values, the gate included (see `LayerAttention`).

    row: of the question set, whose painting it is; the question itself plays no part in it.
    map_on, map_off: (g, g), with the prefix and without: each patch's share, the picture's upper left corner first. The
        weights' mean over layers, heads and query tokens; prefix and class token are left out, and the rest is scaled
        to a sum of 1.
    mass: (Z, H), what lies on the prefix tokens together, of 1; the mean over query tokens. Zeros without a prefix.
    class_token_on, class_token_off: (Z, H), what lies on the ViT's class token, which no map shows, of 1.
    prefix_key_norm, prefix_value_norm, image_key_norm, image_value_norm: (Z, H), the length of a head's vectors, the
        mean over prefix or image tokens, with the prefix on; those of the prefix are zeros without one.
    """

    row: int
    map_on: Floats
    map_off: Floats
    mass: Floats
    class_token_on: Floats
    class_token_off: Floats
    prefix_key_norm: Floats
    prefix_value_norm: Floats
    image_key_norm: Floats
    image_value_norm: Floats


@torch.no_grad()
def attention_of(model: KVModulatedBlip2, questions: QuestionSet, rows: Sequence[int]) -> list[PaintingAttention]:
    """The attention of each row's painting, in the rows' order.

    Each distinct painting is seen once, with the prefix and without; OPT is not run. Of a `session` they are
    `session.model` and `session.questions[split]`. Raises `UserError` for a picture that cannot be read.
    """
    numbers, painting_index = questions.distinct_paintings(rows)
    seen: list[PaintingAttention] = []
    for start in range(0, len(numbers), PAINTINGS_AT_ONCE):
        some = numbers[start : start + PAINTINGS_AT_ONCE]
        paintings = questions.paintings.load(some, some, pin_memory=False).to(model.backbone.device)
        seen += attention_of_features(model, features_of(model, paintings))
    return [replace(seen[place], row=int(row)) for row, place in zip(rows, painting_index, strict=True)]


@torch.no_grad()
def attention_of_features(model: KVModulatedBlip2, features: PaintingFeatures) -> list[PaintingAttention]:
    """The attention of each painting of a batch, its number in the batch as `row`."""
    off = model.cross_attention(features, use_prefix=False)
    on = model.cross_attention(features) if model.has_prefix else off
    per_painting = [
        *(patch_map(layers) for layers in (on, off)),
        _per_head([layer.on_prefix_IHKP.sum(dim=-1) for layer in on]),
        *(_per_head([layer.on_image_IHKN[..., 0] for layer in layers]) for layers in (on, off)),
        _per_head([layer.prefix_key_norm_IHP for layer in on]),
        _per_head([layer.prefix_value_norm_IHP for layer in on]),
        _per_head([layer.image_key_norm_IHN for layer in on]),
        _per_head([layer.image_value_norm_IHN for layer in on]),
    ]
    return [PaintingAttention(row, *(array[row] for array in per_painting)) for row in range(len(features))]


def patch_map(
    layers: Sequence[LayerAttention], layer: int | None = None, head: int | None = None, query: int | None = None
) -> Floats:
    """Each patch's share of the attention to the patches, (I, g, g); see `PaintingAttention.map_on`.

    layer, head, query: the one to show; None: the mean over all.
    """
    chosen = layers if layer is None else [layers[layer]]
    weights_ZIHKN = torch.stack([one.on_image_IHKN[..., 1:] for one in chosen])
    if head is not None:
        weights_ZIHKN = weights_ZIHKN[:, :, head : head + 1]
    if query is not None:
        weights_ZIHKN = weights_ZIHKN[:, :, :, query : query + 1]
    on_patches = weights_ZIHKN.double().mean(dim=(0, 2, 3))
    shares = on_patches / on_patches.sum(dim=-1, keepdim=True)
    edge = math.isqrt(shares.shape[-1])
    return shares.reshape(-1, edge, edge).cpu().numpy()


def mass_over_paintings(attentions: Sequence[PaintingAttention]) -> tuple[Floats, Floats]:
    """Mean and standard deviation over paintings of the mass on the prefix, each (Z, H)."""
    mass = np.stack([attention.mass for attention in attentions])
    return mass.mean(axis=0), mass.std(axis=0)


def _per_head(layers_IH: Sequence[Tensor]) -> Floats:
    """(I, Z, H), the mean over the last dimension, query tokens or tokens; 0 where there are none."""
    stacked = torch.stack(list(layers_IH), dim=1).double()
    return (stacked.sum(dim=-1) / max(1, stacked.shape[-1])).cpu().numpy()
