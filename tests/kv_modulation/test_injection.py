"""What all injections have in common: sources, gates, gradients."""

from typing import Any

import pytest
import torch

from artkv.config import KVModulationConfig
from artkv.kv_modulation import INJECTIONS, ArtSource, ModelSizes, make_injection

SIZES = ModelSizes(width=12, heads=3, layers=2, language_width=10)
SOURCES = [ArtSource("b3", 5), ArtSource("clip-l", 6, num_tokens=3)]
WAYS: list[dict[str, Any]] = [
    {"injection": "concat"},
    {"injection": "concat", "shared_across_layers": False},
    {"injection": "decoupled", "gate": "zero", "gate_per": "head"},
    {"injection": "film"},
    {"injection": "film", "film": "queries", "gate": "zero"},
    {"injection": "prompt"},
]


def test_every_way_is_named_in_the_settings() -> None:
    literal = KVModulationConfig.model_fields["injection"].annotation
    assert set(INJECTIONS) == set(literal.__args__)


def test_one_pooled_source_has_the_parameters_that_checkpoints_have() -> None:
    made = make_injection(KVModulationConfig(gate="zero"), SOURCES[:1], SIZES)
    generator = [f"kv_prefix_generator.mlp.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    generator += ["kv_prefix_generator.prefix_tokens"]
    generator += [f"kv_prefix_generator.{layer}.{kind}" for layer in ("key", "value") for kind in ("weight", "bias")]
    assert {name for name, _ in made.named_parameters()} == {"kv_prefix_gate", *generator}


def test_several_sources_have_parameters_of_their_own_by_name() -> None:
    made = make_injection(KVModulationConfig(), SOURCES, SIZES)
    shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}
    for name, features, width, tokens in (("b3", 5, 8 * 12, 8), ("clip-l", 6, 12, 3)):
        prefix = f"kv_prefix_generator.encoders.{name}"
        assert shapes.pop(f"{prefix}.mlp.0.weight") == (12, features)
        assert shapes.pop(f"{prefix}.mlp.2.weight") == (width, 12)
        assert shapes.pop(f"{prefix}.prefix_tokens") == (tokens, 12)
        assert shapes.pop(f"{prefix}.type_vector") == (12,)
    assert not any("mlp.0.weight" in name for name in shapes)
    # A single source of tokens is one of several in this: it has a vector for each place.
    alone = make_injection(KVModulationConfig(), SOURCES[1:], SIZES)
    assert "kv_prefix_generator.encoders.clip-l.prefix_tokens" in dict(alone.named_parameters())


@pytest.mark.parametrize("settings", WAYS)
@pytest.mark.parametrize("sources", [SOURCES[:1], SOURCES[1:], SOURCES], ids=["pooled", "tokens", "both"])
def test_gradients_reach_every_parameter(settings: dict[str, Any], sources: list[ArtSource]) -> None:
    torch.manual_seed(0)
    made = make_injection(KVModulationConfig(**settings), sources, SIZES).double()
    shapes = [(2, *([] if one.num_tokens is None else [one.num_tokens]), one.feature_dim) for one in sources]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    modulation = made([torch.randn(shape, dtype=torch.float64) for shape in shapes])
    total = torch.zeros((), dtype=torch.float64)
    for value in filter(torch.is_tensor, vars(modulation).values()):
        total = total + (value * torch.randn_like(value)).sum()
    total.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("settings", WAYS)
def test_the_number_of_uses_must_be_that_of_the_sources(settings: dict[str, Any]) -> None:
    made = make_injection(KVModulationConfig(**settings), SOURCES, SIZES)
    assert made.used(True) == [True, True]
    assert made.used((False, True)) == [False, True]
    with pytest.raises(ValueError, match=r"the art encoders are \['b3', 'clip-l'\]; give a truth value for each"):
        made.used([True])


def test_sources_need_distinct_names() -> None:
    with pytest.raises(ValueError, match="give one or more of distinct names"):
        make_injection(KVModulationConfig(), [SOURCES[0], SOURCES[0]], SIZES)
