"""The prefix generator against NumPy, and the property that the picture shapes every token in its own way."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from artkv.config import KVModulationConfig
from artkv.kv_modulation import ArtSource, KVPrefixGenerator, ModelSizes, make_injection

FEATURES, WIDTH, TOKENS, HEADS = 20, 12, 5, 3
POOLED = [ArtSource("efficientnet", FEATURES)]


def numpy_linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def numpy_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def numpy_tokens(generator: KVPrefixGenerator, features: np.ndarray) -> np.ndarray:
    hidden = numpy_gelu(numpy_linear(features, generator.mlp[0]))
    tokens = numpy_linear(hidden, generator.mlp[2]).reshape(len(features), TOKENS, WIDTH)
    return tokens + generator.prefix_tokens.detach().numpy()


@pytest.mark.parametrize("num_layers", [None, 3])
def test_keys_and_values_equal_numpys(num_layers: int | None) -> None:
    torch.manual_seed(0)
    generator = KVPrefixGenerator(POOLED, WIDTH, TOKENS, HEADS, num_layers).double()
    features = np.random.default_rng(0).normal(size=(2, FEATURES))
    keys, values = generator([torch.from_numpy(features)])
    tokens = numpy_tokens(generator, features)
    for result, layer in ((keys, generator.key), (values, generator.value)):
        projected = numpy_linear(tokens, layer)
        if num_layers is None:
            expected = projected.reshape(2, TOKENS, HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)
        else:
            split = projected.reshape(2, TOKENS, num_layers, HEADS, WIDTH // HEADS)
            expected = split.transpose(2, 0, 3, 1, 4)
        # fp64 on both sides; the worst seen is 4e-16.
        np.testing.assert_allclose(result.detach().numpy(), expected, rtol=0, atol=1e-14)


def test_the_pictures_part_differs_from_token_to_token() -> None:
    """Without this a prefix of P tokens would be one token, repeated: rank 1 over tokens."""
    torch.manual_seed(0)
    generator = KVPrefixGenerator(POOLED, WIDTH, TOKENS, HEADS).double()
    one, other = torch.randn(2, 1, FEATURES, dtype=torch.float64)
    for part_of_one, part_of_other in zip(generator([one]), generator([other]), strict=True):
        pictures_part = (part_of_one - part_of_other)[0].transpose(0, 1).flatten(1)  # (P, W)
        assert torch.linalg.matrix_rank(pictures_part) == TOKENS


def test_seed_decides_all_weights_and_the_default_is_that_of_the_true_model() -> None:
    torch.manual_seed(3)
    one = KVPrefixGenerator()
    torch.manual_seed(3)
    other = KVPrefixGenerator()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    keys, values = one([torch.zeros(2, 1536)])
    assert keys.shape == values.shape == (2, 12, 8, 64)


def test_one_pooled_source_draws_as_it_always_did() -> None:
    """So that a seed gives the weights that it gave before there were other injections and several sources."""
    torch.manual_seed(5)
    drawn = [
        nn.Linear(FEATURES, WIDTH),
        nn.Linear(WIDTH, TOKENS * WIDTH),
        nn.Linear(WIDTH, WIDTH),
        nn.Linear(WIDTH, WIDTH),
    ]
    tokens = torch.empty(TOKENS, WIDTH).normal_(std=0.02)
    sizes = ModelSizes(width=WIDTH, heads=HEADS, layers=2, language_width=10)
    for injection in ("concat", "decoupled"):
        torch.manual_seed(5)
        settings = KVModulationConfig(injection=injection, num_prefix_tokens=TOKENS, gate="zero")
        generator = make_injection(settings, POOLED, sizes).kv_prefix_generator
        found = [generator.mlp[0], generator.mlp[2], generator.key, generator.value]
        for one, other in zip(drawn, found, strict=True):
            assert torch.equal(one.weight, other.weight)
            assert torch.equal(one.bias, other.bias)
        assert torch.equal(generator.prefix_tokens, tokens)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads=5 must divide hidden_size=12"):
        KVPrefixGenerator(POOLED, WIDTH, TOKENS, num_heads=5)
