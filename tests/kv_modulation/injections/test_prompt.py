"""`prompt` against NumPy."""

import numpy as np
import pytest
import torch

from artkv.config import KVModulationConfig
from artkv.kv_modulation.injections.prompt import Prompt
from artkv.kv_modulation.modulation import STOCK, AttentionInputs
from tests.kv_modulation.injections.conftest import (
    OF_TOKENS,
    PAINTINGS,
    POOLED,
    SIZES,
    TOKENS,
    Make,
    array,
    normal,
    numpy_linear,
    numpy_mlp,
)


@pytest.mark.parametrize("use", [(True, True), (True, False), (False, True)])
def test_art_tokens_follow_the_visual_ones_and_equal_numpys(
    make: Make, features: list[torch.Tensor], inputs: AttentionInputs, use: tuple[bool, bool]
) -> None:
    injection = make("prompt", [POOLED, OF_TOKENS])
    generator = injection.prompt_generator
    parts = []
    for name, feature, num_tokens in (("first", features[0], TOKENS), ("second", features[1], 3)):
        encoder = generator.encoders[name]
        tokens = numpy_mlp(array(feature), encoder.mlp).reshape(PAINTINGS, num_tokens, SIZES.width)
        parts.append(tokens + array(encoder.prefix_tokens) + array(encoder.type_vector))
    used = [part for part, is_used in zip(parts, use, strict=True) if is_used]
    expected = numpy_linear(np.concatenate(used, axis=1), generator.project)
    visual = normal(PAINTINGS, 4, SIZES.language_width, seed=9)
    modulation = injection(features, use)
    found = modulation.visual_tokens(visual)
    assert torch.equal(found[:, :4], visual)
    # fp64 on both sides; the worst seen is 1e-15.
    np.testing.assert_allclose(array(found[:, 4:]), expected, rtol=0, atol=1e-13)
    assert found.shape[1] == 4 + injection.extra_tokens(use)
    assert torch.equal(modulation.attend(inputs, 0), STOCK.attend(inputs, 0))
    assert torch.equal(modulation.queries(visual), visual)


def test_one_pooled_source_has_the_tokens_of_concat(make: Make, features: list[torch.Tensor]) -> None:
    injection = make("prompt")
    expected = numpy_mlp(array(features[0]), injection.prompt_generator.mlp).reshape(PAINTINGS, TOKENS, SIZES.width)
    expected = numpy_linear(
        expected + array(injection.prompt_generator.prefix_tokens), injection.prompt_generator.project
    )
    np.testing.assert_allclose(array(injection(features[:1]).tokens_IPD), expected, rtol=0, atol=1e-13)


def test_extra_tokens_are_counted_without_a_model() -> None:
    settings = KVModulationConfig(injection="prompt", num_prefix_tokens=5)
    assert Prompt.extra_visual_tokens(settings, [None, 7]) == 12
    assert Prompt.extra_visual_tokens(settings, []) == 0
