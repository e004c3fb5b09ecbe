"""Where the Q-Former's query tokens look in a painting, and how much of that is at the prefix.

Letters in tensor names are explained in `artkv.batch`; g is the edge of the ViT's grid of patches, so N = 1 + g g.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artkv.batch import PaintingFeatures
from artkv.datasets.question_set import QuestionSet
from artkv.evaluation.answering import PAINTINGS_AT_ONCE, features_of
from artkv.kv_modulation import LayerAttention
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.monitoring.attention_picture import Looks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PaintingAttention:
    """The attention of one painting's cross-attention: weights on values, the gate included (see `LayerAttention`).

    row: of the question set, whose painting it is; the question itself plays no part in it.
    map_on, map_off: (g, g), with the prefix and without: each patch's share, the picture's upper left corner first. The
        weights' mean over layers, heads and query tokens; prefix and class token are left out, and the rest is scaled
        to a sum of 1.
    mass: (Z, H), what lies on the prefix tokens together, of 1; the mean over query tokens. Zeros without a prefix,
        None where the injection takes no attention from the image (`Injection.shares_attention`).
    class_token_on, class_token_off: (Z, H), what lies on the ViT's class token, which no map shows, of 1.
    prefix_key_norm, prefix_value_norm, image_key_norm, image_value_norm: (Z, H), the length of a head's vectors, the
        mean over prefix or image tokens, with the prefix on; those of the prefix are zeros without one.
    sizes: (Z, H) each, what else the injection says of itself, with the prefix on; see its `record`.
    """

    row: int
    map_on: Floats
    map_off: Floats
    mass: Floats | None
    class_token_on: Floats
    class_token_off: Floats
    prefix_key_norm: Floats
    prefix_value_norm: Floats
    image_key_norm: Floats
    image_value_norm: Floats
    sizes: Mapping[str, Floats] = field(default_factory=dict)


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
    injection = model.parts.injection
    per_painting = {
        "map_on": patch_map(on),
        "map_off": patch_map(off),
        "mass": _per_head([layer.on_prefix_IHKP.sum(dim=-1) for layer in on]),
        "class_token_on": _per_head([layer.on_image_IHKN[..., 0] for layer in on]),
        "class_token_off": _per_head([layer.on_image_IHKN[..., 0] for layer in off]),
        "prefix_key_norm": _per_head([layer.prefix_key_norm_IHP for layer in on]),
        "prefix_value_norm": _per_head([layer.prefix_value_norm_IHP for layer in on]),
        "image_key_norm": _per_head([layer.image_key_norm_IHN for layer in on]),
        "image_value_norm": _per_head([layer.image_value_norm_IHN for layer in on]),
    }
    sizes = {name: _per_head([layer.sizes[name][..., None] for layer in on]) for name in on[0].sizes}
    found = [
        PaintingAttention(
            row=row,
            sizes={name: array[row] for name, array in sizes.items()},
            **{name: array[row] for name, array in per_painting.items()},
        )
        for row in range(len(features))
    ]
    if injection is not None and not injection.shares_attention:
        found = [replace(attention, mass=None) for attention in found]
    return found


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


def mass_over_paintings(attentions: Sequence[PaintingAttention]) -> tuple[Floats, Floats] | None:
    """Mean and standard deviation over paintings of the mass on the prefix, each (Z, H); None where there is none."""
    masses = [attention.mass for attention in attentions if attention.mass is not None]
    if not masses:
        return None
    mass = np.stack(masses)
    return mass.mean(axis=0), mass.std(axis=0)


def sizes_over_paintings(attentions: Sequence[PaintingAttention]) -> dict[str, float]:
    """The mean of each of `PaintingAttention.sizes`, over paintings, layers and heads."""
    return {name: float(np.mean([one.sizes[name] for one in attentions])) for name in attentions[0].sizes}


def looks_of(attention: PaintingAttention, has_prefix: bool) -> Looks:
    """What is drawn of a painting's attention. has_prefix: whether its model has one."""
    mass = None if attention.mass is None else float(attention.mass.mean())
    return Looks(attention.map_on if has_prefix else None, attention.map_off, mass)


def _per_head(layers_IH: Sequence[Tensor]) -> Floats:
    """(I, Z, H), the mean over the last dimension, query tokens or tokens; 0 where there are none."""
    stacked = torch.stack(list(layers_IH), dim=1).double()
    return (stacked.sum(dim=-1) / max(1, stacked.shape[-1])).cpu().numpy()
