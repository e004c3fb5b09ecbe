"""Installation reaches every cross-attention layer or fails."""

import pytest
from torch import nn

from artkv.kv_modulation import PrefixedCrossAttention, install_prefixed_cross_attention


def block() -> nn.Module:
    attention = nn.Module()
    attention.query, attention.key, attention.value = (nn.Linear(4, 4) for _ in range(3))
    outer = nn.Module()
    outer.attention = attention
    return outer


def test_every_block_gets_its_own_index_and_keeps_its_weights() -> None:
    blocks = [block(), block()]
    weights = [b.attention.query.weight for b in blocks]
    install_prefixed_cross_attention(blocks, "attention", num_heads=2, expected_count=2)
    for index, b in enumerate(blocks):
        assert isinstance(b.attention, PrefixedCrossAttention)
        assert b.attention.layer_index == index
        assert b.attention.query.weight is weights[index]


def test_a_count_that_differs_from_the_configs_is_an_error() -> None:
    with pytest.raises(ValueError, match="has 1 cross-attention layers but its config says 2"):
        install_prefixed_cross_attention([block()], "attention", num_heads=2, expected_count=2)


def test_a_block_of_another_kind_is_an_error() -> None:
    stranger = nn.Module()
    stranger.attention = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"Linear has no \['query', 'key', 'value'\]"):
        install_prefixed_cross_attention([stranger], "attention", num_heads=2, expected_count=1)
