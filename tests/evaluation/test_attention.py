"""Attention of paintings: where a map is brightest, what it leaves out, and the mass on the prefix."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from artkv.batch import PaintingFeatures, PaintingViews
from artkv.config import Config
from artkv.datasets.pictures import PaintingTransform
from artkv.distributed import World
from artkv.evaluation.attention import attention_of, attention_of_features, mass_over_paintings, patch_map
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.session import Session

LAYERS, HEADS, GRID = 2, 4, 2


@pytest.fixture
def session(tiny_config: Config, one_process: World) -> Session:
    return Session(tiny_config, one_process, ["val"]).load()


@torch.no_grad()
def look_at_bright_patches(model: KVModulatedBlip2) -> None:
    """Makes the ViT say nothing but each patch's brightness, in its first channel, and all queries ask for it."""
    for name, parameter in model.backbone.named_parameters().items():
        if name.startswith("vision_model."):
            parameter.zero_()
    parameters = model.backbone.named_parameters()
    parameters["vision_model.embeddings.patch_embedding.weight"][0] = 1.0
    parameters["vision_model.post_layernorm.weight"].fill_(1.0)
    for layer in model.backbone.cross_attention:
        layer.query.weight.zero_()
        layer.query.bias.fill_(2.0)
        layer.key.weight.zero_()
        layer.key.weight[:, 0] = 1.0


class WhiteCorners:
    """A `PaintingSource` of black pictures, wider than high, the painting's number of whose corners is white."""

    def __init__(self, transform: PaintingTransform) -> None:
        self._transform = transform

    def load(self, paintings: np.ndarray, art_paintings: np.ndarray, pin_memory: bool) -> PaintingViews:
        views = []
        for down, right in (divmod(int(painting), 2) for painting in paintings):
            picture = Image.new("RGB", (96, 40))
            ImageDraw.Draw(picture).rectangle((48 * right, 20 * down, 48 * right + 47, 20 * down + 19), fill="white")
            views.append(self._transform(picture))
        vit, art = zip(*views, strict=True)
        return PaintingViews(torch.stack(vit), tuple(torch.stack(of_encoder) for of_encoder in zip(*art, strict=True)))


@pytest.mark.parametrize("backend", ["transformers", "lavis"])
def test_a_map_is_brightest_where_the_answer_is(
    settings: Callable[..., Config], one_process: World, backend: str
) -> None:
    """The model is made by hand to look for white."""
    session = Session(settings(model={"backend": backend}), one_process, ["val"]).load()
    look_at_bright_patches(session.model)
    questions = replace(session.questions["val"], paintings=WhiteCorners(session.transform))
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    rows = [int(np.flatnonzero(questions.table.painting_of_row == painting)[0]) for painting in range(len(corners))]
    found = attention_of(session.model, questions, rows)
    for corner, attention in zip(corners, found, strict=True):
        for patches in (attention.map_on, attention.map_off):
            assert patches.shape == (GRID, GRID)
            assert np.unravel_index(patches.argmax(), patches.shape) == corner
            assert patches.max() > 0.5
            assert patches.sum() == pytest.approx(1.0, abs=1e-12)


def test_maps_leave_out_prefix_and_class_token_and_mass_is_the_prefixs_share(session: Session) -> None:
    model = session.model
    features = features_of_two(model)
    found = attention_of_features(model, features)
    on, off = model.cross_attention(features), model.cross_attention(features, use_prefix=False)
    for painting, attention in enumerate(found):
        for patches, layers, class_token in (
            (attention.map_on, on, attention.class_token_on),
            (attention.map_off, off, attention.class_token_off),
        ):
            weights = np.stack([layer.on_image_IHKN[painting].numpy().astype(np.float64) for layer in layers])
            expected = weights[..., 1:].mean(axis=(0, 1, 2))
            np.testing.assert_allclose(patches.ravel(), expected / expected.sum(), rtol=1e-12)
            np.testing.assert_allclose(class_token, weights[..., 0].mean(axis=-1), rtol=1e-12)
        prefix = np.stack([layer.on_prefix_IHKP[painting].numpy().astype(np.float64) for layer in on])
        np.testing.assert_allclose(attention.mass, prefix.sum(axis=-1).mean(axis=-1), rtol=1e-6)  # added in fp32
        assert attention.mass.shape == (LAYERS, HEADS)
        assert (attention.mass > 0.01).all()
    mean, spread = mass_over_paintings(found)
    np.testing.assert_allclose(mean, (found[0].mass + found[1].mass) / 2)
    np.testing.assert_allclose(spread, abs(found[0].mass - found[1].mass) / 2)


def test_a_map_of_one_layer_head_and_query(session: Session) -> None:
    layers = session.model.cross_attention(features_of_two(session.model))
    one = patch_map(layers, layer=1, head=2, query=3)
    weights = layers[1].on_image_IHKN[:, 2, 3, 1:].numpy()
    # fp32 weights, divided in fp64.
    np.testing.assert_allclose(one.reshape(2, -1), weights / weights.sum(axis=-1, keepdims=True), rtol=1e-6)
    assert not np.allclose(one, patch_map(layers))


def test_each_row_gets_its_own_paintings_attention(session: Session) -> None:
    questions = session.questions["val"]
    rows = [10, 0, 9, 1]
    together = attention_of(session.model, questions, rows)
    assert [attention.row for attention in together] == rows
    for row, attention in zip(rows, together, strict=True):
        (alone,) = attention_of(session.model, questions, [row])
        # fp32; a batch's products are added up in another order. The worst seen is 1e-6 relative.
        np.testing.assert_allclose(attention.map_on, alone.map_on, rtol=1e-5)
        np.testing.assert_allclose(attention.mass, alone.mass, rtol=1e-5)
    assert not np.allclose(together[0].mass, together[1].mass)


def test_a_model_without_a_prefix_has_no_mass_on_it(settings: Callable[..., Config], one_process: World) -> None:
    session = Session(settings(kv_modulation={"enabled": False}), one_process, ["val"]).load()
    (found,) = attention_of(session.model, session.questions["val"], [0])
    assert (found.map_on == found.map_off).all()
    assert found.mass.shape == found.prefix_key_norm.shape == (LAYERS, HEADS)
    assert not found.mass.any()
    assert not found.prefix_key_norm.any()
    assert found.image_key_norm.all()


def features_of_two(model: KVModulatedBlip2) -> PaintingFeatures:
    generator = torch.Generator().manual_seed(5)
    art = model.parts.injection
    assert art is not None
    return PaintingFeatures(
        torch.randn(2, 1 + GRID**2, 32, generator=generator),
        (torch.randn(2, art.sources[0].feature_dim, generator=generator),),
    )
