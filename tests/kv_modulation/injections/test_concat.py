"""`concat` with gates and several sources, against NumPy; one pooled source is in `test_attention.py`."""

import numpy as np
import pytest
import torch

from artkv.kv_modulation.modulation import STOCK, AttentionInputs
from tests.kv_modulation.injections.conftest import (
    HEAD_WIDTH,
    OF_TOKENS,
    PAINTINGS,
    POOLED,
    SIZES,
    TOKENS,
    Make,
    array,
    numpy_attention,
    numpy_gate,
    numpy_linear,
    numpy_mlp,
)

GATES = [{}, *({"gate": "zero", "gate_per": per} for per in ("model", "layer", "head"))]


def numpy_prefix(injection: torch.nn.Module, features: list[torch.Tensor], is_shared: bool) -> list[list[np.ndarray]]:
    """Keys and values of each layer, (I, H, P, X), of a pooled source and one of tokens."""
    generator = injection.kv_prefix_generator
    first, second = generator.encoders["first"], generator.encoders["second"]
    of_first = numpy_mlp(array(features[0]), first.mlp).reshape(PAINTINGS, TOKENS, SIZES.width)
    of_second = numpy_mlp(array(features[1]), second.mlp)
    tokens = np.concatenate(
        [
            of_first + array(first.prefix_tokens) + array(first.type_vector),
            of_second + array(second.prefix_tokens) + array(second.type_vector),
        ],
        axis=1,
    )
    both = []
    for linear in (generator.key, generator.value):
        projected = numpy_linear(tokens, linear).reshape(PAINTINGS, TOKENS + 3, -1, SIZES.heads, HEAD_WIDTH)
        both.append([projected[:, :, 0 if is_shared else layer].transpose(0, 2, 1, 3) for layer in range(SIZES.layers)])
    return both


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_two_sources_and_gates_equal_numpys(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, gate: dict, is_shared: bool
) -> None:
    injection = make("concat", [POOLED, OF_TOKENS], shared_across_layers=is_shared, **gate)
    modulation = injection(features)
    keys, values = numpy_prefix(injection, features, is_shared)
    query, key, value = (array(one) for one in (inputs.query_IHKX, inputs.key_IHNX, inputs.value_IHNX))
    mask = array(inputs.mask)
    full_mask = np.concatenate([np.ones((PAINTINGS, 1, 1, TOKENS + 3), dtype=bool), mask], axis=-1)
    for layer in range(SIZES.layers):
        expected = numpy_attention(
            query,
            np.concatenate([keys[layer], key], axis=2),
            np.concatenate([values[layer], value], axis=2),
            full_mask,
        )
        if gate:
            stock = numpy_attention(query, key, value, mask)
            expected = stock + numpy_gate(injection.kv_prefix_gate, layer) * (expected - stock)
        # fp64 on both sides; the worst seen is 2e-15.
        np.testing.assert_allclose(array(modulation.attend(inputs, layer)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["concat", "decoupled"])
def test_a_source_that_is_off_is_as_if_it_were_not_there(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, name: str
) -> None:
    injection = make(name, [POOLED, OF_TOKENS])
    both = injection(features)
    for use, some in (([True, False], slice(0, TOKENS)), ([False, True], slice(TOKENS, None))):
        one = injection(features, use)
        # Another number of rows in a product of matrices; the worst seen is 2e-16.
        torch.testing.assert_close(one.k, both.k[:, :, some], rtol=0, atol=1e-14)
        torch.testing.assert_close(one.v, both.v[:, :, some], rtol=0, atol=1e-14)
        # Its features play no part: those of another painting change nothing.
        others = [part if used else part.flip(0) for part, used in zip(features, use, strict=True)]
        assert torch.equal(injection(others, use).attend(inputs, 0), one.attend(inputs, 0))
        assert not torch.allclose(one.attend(inputs, 0), both.attend(inputs, 0))
    with pytest.raises(ValueError, match="give a truth value each, one true"):
        injection(features, [False, False])


@pytest.mark.parametrize("per", ["model", "layer", "head"])
@pytest.mark.parametrize("name", ["concat", "decoupled", "film"])
def test_a_closed_gate_is_stock_attention_bit_for_bit(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, name: str, per: str
) -> None:
    injection = make(name, [POOLED, OF_TOKENS], gate="zero", gate_per=per)
    assert injection.kv_prefix_gate.shape == {"model": (1,), "layer": (2,), "head": (2, 3)}[per]
    with torch.no_grad():
        injection.kv_prefix_gate.zero_()
    for layer in range(SIZES.layers):
        stock = STOCK.attend(inputs, layer)
        assert torch.equal(injection(features).attend(inputs, layer), stock)
        with torch.no_grad():
            injection.kv_prefix_gate.fill_(0.5)
        assert not torch.allclose(injection(features).attend(inputs, layer), stock)
        with torch.no_grad():
            injection.kv_prefix_gate.zero_()
