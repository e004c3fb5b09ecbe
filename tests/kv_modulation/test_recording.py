"""Recorded attention against a NumPy softmax, and against the output of the layer itself."""

import numpy as np
import pytest
import torch
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention

from artkv.kv_modulation import KVPrefix, LayerAttention, PrefixedCrossAttention, recorded_attention

PAINTINGS, QUERIES, IMAGE_TOKENS, PREFIX_TOKENS, HEADS, HEAD_WIDTH, IMAGE_WIDTH = 3, 4, 7, 2, 3, 4, 10


@pytest.fixture
def layer() -> PrefixedCrossAttention:
    torch.manual_seed(0)
    config = Blip2QFormerConfig(
        hidden_size=HEADS * HEAD_WIDTH, num_attention_heads=HEADS, encoder_hidden_size=IMAGE_WIDTH
    )
    stock = Blip2QFormerMultiHeadAttention(config, is_cross_attention=True).eval()
    return PrefixedCrossAttention(stock.query, stock.key, stock.value, HEADS, layer_index=0)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(PAINTINGS, QUERIES, HEADS * HEAD_WIDTH, generator=generator)
    return queries, torch.randn(PAINTINGS, IMAGE_TOKENS, IMAGE_WIDTH, generator=generator)


def prefix(gate: float | None = None) -> KVPrefix:
    generator = torch.Generator().manual_seed(2)
    k, v = (2 * torch.randn(PAINTINGS, HEADS, PREFIX_TOKENS, HEAD_WIDTH, generator=generator) for _ in range(2))
    return KVPrefix(k, v, None if gate is None else torch.tensor([gate]))


def image_mask() -> torch.Tensor:
    mask = torch.ones(PAINTINGS, 1, 1, IMAGE_TOKENS, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return mask


def record(
    layer: PrefixedCrossAttention, kv: KVPrefix | None, mask: torch.Tensor | None = None
) -> tuple[LayerAttention, torch.Tensor]:
    queries, image = inputs()
    with recorded_attention([layer]) as recorded:
        output, _ = layer(queries, encoder_hidden_states=image, encoder_attention_mask=mask, modulation=kv)
    (found,) = recorded
    return found, output.detach()


def by_head(linear: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """(I, H, tokens, X) float64, of NumPy."""
    projected = x.double().numpy() @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
    return projected.reshape(*x.shape[:2], HEADS, HEAD_WIDTH).transpose(0, 2, 1, 3)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("masked", [None, "bool", "additive"])
@pytest.mark.parametrize("gate", [None, 0.0, 0.7, -0.4])
def test_weights_are_numpys_softmax(layer: PrefixedCrossAttention, gate: float | None, masked: str | None) -> None:
    queries, image = inputs()
    kv, mask, open_mask = prefix(gate), None, np.ones((PAINTINGS, 1, 1, IMAGE_TOKENS), dtype=bool)
    if masked:
        mask, open_mask = image_mask(), image_mask().numpy()
    if masked == "additive":
        mask = torch.zeros(image_mask().shape).masked_fill(~image_mask(), -torch.inf)
    found, _ = record(layer, kv, mask)

    query, key = by_head(layer.query, queries), by_head(layer.key, image)
    of_image = np.where(open_mask, query @ key.swapaxes(-1, -2) / np.sqrt(HEAD_WIDTH), -np.inf)
    of_prefix = query @ kv.k.double().numpy().swapaxes(-1, -2) / np.sqrt(HEAD_WIDTH)
    both = softmax(np.concatenate([of_prefix, of_image], axis=-1))
    opened = 1.0 if gate is None else np.tanh(gate)
    alone = np.concatenate([np.zeros_like(of_prefix), softmax(of_image)], axis=-1)
    expected = alone + opened * (both - alone)
    weights = torch.cat([found.on_prefix_IHKP, found.on_image_IHKN], dim=-1)
    # fp32 against fp64; the worst seen is 3e-7.
    np.testing.assert_allclose(weights.numpy(), expected, rtol=0, atol=3e-6)
    assert np.abs(expected[..., :PREFIX_TOKENS]).max() > 0.1 or gate == 0.0


@pytest.mark.parametrize("gate", [None, 0.0, 0.7, -0.4])
def test_the_layers_output_is_the_values_added_up_with_these_weights(
    layer: PrefixedCrossAttention, gate: float | None
) -> None:
    kv = prefix(gate)
    found, output = record(layer, kv, image_mask())
    image_values = torch.from_numpy(by_head(layer.value, inputs()[1])).float()
    expected = found.on_prefix_IHKP @ kv.v + found.on_image_IHKN @ image_values
    # fp32, values up to 3; the worst seen is 7e-7.
    torch.testing.assert_close(output, expected.transpose(1, 2).flatten(2), rtol=0, atol=7e-6)


def test_without_a_prefix_all_lies_on_the_image(layer: PrefixedCrossAttention) -> None:
    found, output = record(layer, None)
    assert found.on_prefix_IHKP.shape == (PAINTINGS, HEADS, QUERIES, 0)
    assert found.prefix_key_norm_IHP.shape == (PAINTINGS, HEADS, 0)
    # fp32; the worst seen is 1.2e-7.
    torch.testing.assert_close(found.on_image_IHKN.sum(-1), torch.ones(PAINTINGS, HEADS, QUERIES), rtol=0, atol=1e-6)
    values = torch.from_numpy(by_head(layer.value, inputs()[1])).float()
    torch.testing.assert_close(output, (found.on_image_IHKN @ values).transpose(1, 2).flatten(2), rtol=0, atol=7e-6)


def test_norms_are_of_each_heads_vectors(layer: PrefixedCrossAttention) -> None:
    kv = prefix()
    found, _ = record(layer, kv)
    image = inputs()[1]
    for norms, vectors in (
        (found.prefix_key_norm_IHP, kv.k.numpy()),
        (found.prefix_value_norm_IHP, kv.v.numpy()),
        (found.image_key_norm_IHN, by_head(layer.key, image)),
        (found.image_value_norm_IHN, by_head(layer.value, image)),
    ):
        # fp32; the worst seen is 2e-7 relative.
        np.testing.assert_allclose(norms.numpy(), np.sqrt((vectors**2).sum(-1)), rtol=2e-6)


def test_recording_changes_no_output_and_ends_with_the_block(layer: PrefixedCrossAttention) -> None:
    queries, image = inputs()
    kv = prefix(0.7)
    before, _ = layer(queries, encoder_hidden_states=image, modulation=kv)
    with recorded_attention([layer]) as recorded:
        inside, _ = layer(queries, encoder_hidden_states=image, modulation=kv)
    layer(queries, encoder_hidden_states=image, modulation=kv)
    assert torch.equal(inside, before)
    assert inside.requires_grad
    assert len(recorded) == 1
    assert not recorded[0].on_prefix_IHKP.requires_grad
