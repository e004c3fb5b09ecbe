"""The example of docs/extending.md, as it stands there, as one more way of injecting art features."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artkv.config import Config
from artkv.distributed import single_process
from artkv.kv_modulation import INJECTIONS, ArtSource, Injection, ModelSizes
from artkv.models.assembly import build_model, num_visual_tokens
from artkv.models.kv_modulated_blip2 import KVModulatedBlip2
from artkv.planning.shapes import model_shapes
from tests.models.conftest import training_batch, views

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
MARK = "<!-- executed by tests/kv_modulation/test_new_injection.py -->\n\n```python\n"


@pytest.fixture
def bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Injection]:
    """Its class, with the line in `INJECTIONS`."""
    file = tmp_path / "bias.py"
    file.write_text(PAGE.read_text(encoding="utf-8").split(MARK)[1].split("```")[0])
    spec = importlib.util.spec_from_file_location("bias", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "bias", module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    monkeypatch.setitem(INJECTIONS, "bias", module.Bias)
    return module.Bias


@pytest.fixture
def config_of(settings: Callable[..., Config]) -> Callable[..., Config]:
    """The tiny config with this injection, which the schema's third line would let through."""

    def make(backend: str = "transformers", **changes: object) -> Config:
        config = settings(model={"backend": backend})
        kv = config.kv_modulation.model_copy(update={"injection": "bias", **changes})
        return config.model_copy(update={"kv_modulation": kv})

    return make


def build(config: Config) -> KVModulatedBlip2:
    return build_model(config, single_process(torch.device("cpu"))).model


@pytest.mark.parametrize("backend", ["transformers", "lavis"])
def test_it_trains_in_the_assembled_model(
    bias: type[Injection], config_of: Callable[..., Config], backend: str
) -> None:
    model = build(config_of(backend))
    assert isinstance(model.parts.injection, bias)
    trainables = model.named_trainables()
    assert {name for name in trainables if not name.startswith("qformer.")} == {
        "bias_generator.test_efficientnet.weight",
        "bias_generator.test_efficientnet.bias",
    }
    batch = training_batch(model.backbone.tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(batch).loss_sum
        loss.backward()
        assert all(parameter.grad is not None for parameter in trainables.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_its_gate_starts_at_stock_and_off_is_stock(bias: type[Injection], config_of: Callable[..., Config]) -> None:
    model = build(config_of(gate="zero"))
    features = model.encode(views())
    with torch.no_grad():
        off = model.visual_tokens(features, use_prefix=False)
        assert torch.equal(model.visual_tokens(features), off)
        model.named_trainables()["kv_prefix_gate"].fill_(0.5)
        moved = model.visual_tokens(features) - off
        # The same vector on every visual token of a painting, another one on another painting; fp32.
        torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=0, atol=1e-5)
        assert (moved[0] - moved[1]).abs().max() > 1e-3
    assert num_visual_tokens(config_of(), 6) == model.num_visual_tokens == 6


def test_the_planner_counts_it_and_sources_can_be_off(bias: type[Injection], config_of: Callable[..., Config]) -> None:
    config = config_of()
    expected = {name: tuple(one.shape) for name, one in build(config).named_trainables().items()}
    assert model_shapes(config, torch.float32, []).trainable_shapes() == expected
    sizes = ModelSizes(width=12, heads=3, layers=2, language_width=10)
    made = bias(config.kv_modulation, [ArtSource("a", 3), ArtSource("b", 4, num_tokens=5)], sizes)
    one, other = torch.randn(2, 3), torch.randn(2, 5, 4)
    both, first, second = (made([one, other], use).bias_I1D for use in (None, [True, False], [False, True]))
    torch.testing.assert_close(first + second, both)
    assert made([one, other], [False, True]).bias_I1D.shape == (2, 1, 10)
