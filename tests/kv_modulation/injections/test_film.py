"""`film` against NumPy, and where it starts."""

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
    Make,
    array,
    normal,
    numpy_attention,
    numpy_gate,
    numpy_mlp,
)
from tests.kv_modulation.injections.test_concat import GATES


def numpy_changes(injection: torch.nn.Module, features: list[torch.Tensor], use: tuple[bool, bool]) -> np.ndarray:
    pooled = {"first": array(features[0]), "second": array(features[1]).mean(axis=1)}
    used = [name for name, is_used in zip(pooled, use, strict=True) if is_used]
    return sum(numpy_mlp(pooled[name], injection.film_generator[name]) for name in used)


@pytest.mark.parametrize("use", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_keys_and_values_equal_numpys(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, gate: dict, is_shared: bool,
    use: tuple[bool, bool],
) -> None:  # fmt: skip
    injection = make("film", [POOLED, OF_TOKENS], shared_across_layers=is_shared, **gate)
    modulation = injection(features, use)
    shape = (PAINTINGS, 1 if is_shared else SIZES.layers, 3, SIZES.heads, 1, HEAD_WIDTH)
    changes = numpy_changes(injection, features, use).reshape(shape)
    query, key, value = (array(one) for one in (inputs.query_IHKX, inputs.key_IHNX, inputs.value_IHNX))
    for layer in range(SIZES.layers):
        of_layer = changes[:, 0 if is_shared else layer]
        if gate:
            of_layer = of_layer * numpy_gate(injection.kv_prefix_gate, layer)
        key_scale, value_scale, value_shift = of_layer[:, 0], of_layer[:, 1], of_layer[:, 2]
        expected = numpy_attention(
            query, key * (1 + key_scale), value * (1 + value_scale) + value_shift, array(inputs.mask)
        )
        # fp64 on both sides; the worst seen is 3e-15.
        np.testing.assert_allclose(array(modulation.attend(inputs, layer)), expected, rtol=0, atol=1e-13)
        record = modulation.record(inputs, layer)
        np.testing.assert_allclose(array(record.on_image_IHKN.sum(dim=-1)), 1.0, atol=2e-6)
        assert record.on_prefix_IHKP.shape[-1] == 0
        for name, size in (("key_scale", key_scale), ("value_scale", value_scale), ("value_shift", value_shift)):
            expected_size = np.sqrt((size[..., 0, :] ** 2).mean(axis=-1))
            np.testing.assert_allclose(array(record.sizes[name]), expected_size, rtol=1e-5)


@pytest.mark.parametrize("gate", [{}, {"gate": "zero"}])
def test_queries_equal_numpys(make: Make, features: list[torch.Tensor], inputs: AttentionInputs, gate: dict) -> None:
    injection = make("film", [POOLED, OF_TOKENS], film="queries", **gate)
    modulation = injection(features)
    queries = normal(PAINTINGS, 4, SIZES.width, seed=9)
    changes = numpy_changes(injection, features, (True, True)).reshape(PAINTINGS, 2, 1, SIZES.width)
    if gate:
        changes = changes * np.tanh(array(injection.kv_prefix_gate))
    expected = array(queries) * (1 + changes[:, 0]) + changes[:, 1]
    # fp64 on both sides; the worst seen is 1e-15.
    np.testing.assert_allclose(array(modulation.queries(queries)), expected, rtol=0, atol=1e-13)
    assert torch.equal(modulation.attend(inputs, 0), STOCK.attend(inputs, 0))
    sizes = modulation.record(inputs, 0).sizes
    for number, name in enumerate(("query_scale", "query_shift")):
        size = np.sqrt((changes[:, number] ** 2).mean(axis=-1))
        np.testing.assert_allclose(array(sizes[name]), np.repeat(size, SIZES.heads, axis=1), rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"gate": "zero"}, {"film": "queries"}, {"film": "queries", "gate": "zero"}])
def test_it_starts_as_stock_and_learns_from_the_first_step_on(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, settings: dict
) -> None:
    """Also with a gate, which with a last layer of zeros would never get a gradient, nor the layer by it."""
    injection = make("film", [POOLED, OF_TOKENS], is_open=False, **settings)
    modulation = injection(features)
    queries = normal(PAINTINGS, 4, SIZES.width, seed=9)
    assert torch.equal(modulation.queries(queries), queries)
    assert torch.equal(modulation.attend(inputs, 0), STOCK.attend(inputs, 0))
    (modulation.queries(queries).square().sum() + modulation.attend(inputs, 0).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in injection.parameters())
    learns = {name for name, parameter in injection.named_parameters() if parameter.grad.any()}
    last = {f"film_generator.{name}.2.{kind}" for name in ("first", "second") for kind in ("weight", "bias")}
    assert learns == ({"kv_prefix_gate"} if "gate" in settings else last)
