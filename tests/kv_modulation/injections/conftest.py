"""Inputs of one cross-attention layer in fp64, and NumPy's attention."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from artkv.config import KVModulationConfig
from artkv.kv_modulation import ArtSource, Injection, ModelSizes, make_injection
from artkv.kv_modulation.modulation import AttentionInputs

PAINTINGS, QUERIES, IMAGE_TOKENS, TOKENS, FEATURES = 3, 4, 7, 2, 5
SIZES = ModelSizes(width=12, heads=3, layers=2, language_width=10)
HEAD_WIDTH = SIZES.width // SIZES.heads
POOLED = ArtSource("first", FEATURES)
OF_TOKENS = ArtSource("second", 6, num_tokens=3)

Make = Callable[..., Injection]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def make() -> Make:
    """`make("film", sources=[...], gate="zero")`: an injection in fp64 of which no parameter is zero."""

    def make_one(name: str, sources: list[ArtSource] | None = None, is_open: bool = True, **settings: Any) -> Injection:
        if name != "film":
            settings["num_prefix_tokens"] = TOKENS
        torch.manual_seed(0)
        made = make_injection(KVModulationConfig(injection=name, **settings), sources or [POOLED], SIZES).double()
        with torch.no_grad():
            for number, parameter in enumerate(made.parameters() if is_open else ()):
                parameter.copy_(0.3 * normal(*parameter.shape, seed=number))
        return made

    return make_one


@pytest.fixture
def features() -> list[torch.Tensor]:
    """Of `POOLED` and of `OF_TOKENS`."""
    return [normal(PAINTINGS, FEATURES, seed=1), normal(PAINTINGS, 3, 6, seed=2)]


@pytest.fixture
def inputs() -> AttentionInputs:
    """With some image tokens of the second painting masked out."""
    mask = torch.ones(PAINTINGS, 1, 1, IMAGE_TOKENS, dtype=torch.bool)
    mask[1, ..., 4:] = False
    query = normal(PAINTINGS, SIZES.heads, QUERIES, HEAD_WIDTH, seed=3)
    key, value = (normal(PAINTINGS, SIZES.heads, IMAGE_TOKENS, HEAD_WIDTH, seed=seed) for seed in (4, 5))
    return AttentionInputs(query, key, value, mask)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def numpy_attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """(I, H, K, X). mask: of bool, or None."""
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(HEAD_WIDTH)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def numpy_gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return x * 0.5 * (1.0 + np.vectorize(erf)(x / np.sqrt(2.0)))


def numpy_linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)


def numpy_mlp(x: np.ndarray, mlp: torch.nn.Sequential) -> np.ndarray:
    return numpy_linear(numpy_gelu(numpy_linear(x, mlp[0])), mlp[2])


def numpy_gate(gate: torch.Tensor, layer: int) -> np.ndarray:
    """`tanh(g)` by head, (H, 1, 1)."""
    opened = np.tanh(array(gate))
    of_layer = opened[layer] if opened.shape[0] > 1 else opened
    return np.broadcast_to(of_layer, (SIZES.heads,))[:, None, None]
