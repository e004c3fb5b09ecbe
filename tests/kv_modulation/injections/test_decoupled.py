"""`decoupled` against NumPy."""

import numpy as np
import pytest
import torch

from artkv.kv_modulation import KVPrefix
from artkv.kv_modulation.injections.decoupled import DecoupledPrefix
from artkv.kv_modulation.modulation import STOCK, AttentionInputs
from tests.kv_modulation.injections.conftest import OF_TOKENS, POOLED, SIZES, Make, array, numpy_attention, numpy_gate
from tests.kv_modulation.injections.test_concat import GATES, numpy_prefix


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_the_sum_of_two_attentions_equals_numpys(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, gate: dict, is_shared: bool
) -> None:
    injection = make("decoupled", [POOLED, OF_TOKENS], shared_across_layers=is_shared, **gate)
    modulation = injection(features)
    keys, values = numpy_prefix(injection, features, is_shared)
    query, key, value = (array(one) for one in (inputs.query_IHKX, inputs.key_IHNX, inputs.value_IHNX))
    for layer in range(SIZES.layers):
        weight = numpy_gate(injection.kv_prefix_gate, layer) if gate else 1.0
        of_image = numpy_attention(query, key, value, array(inputs.mask))
        of_art = weight * numpy_attention(query, keys[layer], values[layer])
        # fp64 on both sides; the worst seen is 2e-15.
        np.testing.assert_allclose(array(modulation.attend(inputs, layer)), of_image + of_art, rtol=0, atol=1e-13)
        record = modulation.record(inputs, layer)
        total = np.broadcast_to(np.asarray(weight)[..., 0] if gate else 1.0, record.on_prefix_IHKP.shape[:3])
        # float32; the worst seen is 3e-7.
        np.testing.assert_allclose(array(record.on_prefix_IHKP.sum(dim=-1)), total, atol=2e-6)
        np.testing.assert_allclose(array(record.on_image_IHKN.sum(dim=-1)), 1.0, atol=2e-6)
        for name, out in (("image_output", of_image), ("art_output", of_art)):
            expected = np.sqrt((out**2).mean(axis=(-2, -1)))
            np.testing.assert_allclose(array(record.sizes[name]), expected, rtol=1e-5)


def test_it_is_not_concat_and_no_tokens_are_stock(inputs: AttentionInputs) -> None:
    k, v = torch.randn(2, 3, SIZES.heads, 2, 4, dtype=torch.float64)
    decoupled, concat = DecoupledPrefix(k, v), KVPrefix(k, v)
    assert (decoupled.attend(inputs, 0) - concat.attend(inputs, 0)).abs().max() > 0.1
    empty = DecoupledPrefix(k[:, :, :0], v[:, :, :0])
    assert torch.equal(empty.attend(inputs, 0), STOCK.attend(inputs, 0))
