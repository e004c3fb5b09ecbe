"""OPT's attention on CPUs against transformers' own."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from artkv.models.opt.cpu_attention import CPU_ATTENTION, attention_in_products

VOCABULARY, ROWS, COLUMNS = 50, 3, 9


def opt(dtype: torch.dtype) -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_attention_heads=4,
        num_hidden_layers=3, max_position_embeddings=64,
    )  # fmt: skip
    return OPTForCausalLM(config).to(dtype).eval().requires_grad_(False)


def with_attention(model: OPTForCausalLM, name: str) -> OPTForCausalLM:
    model = copy.deepcopy(model)
    model.set_attn_implementation(name)
    return model


def logits_and_gradient(model: OPTForCausalLM, padding: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(ROWS, COLUMNS, 32, generator=generator, dtype=torch.float64)
    embeds = embeds.to(model.dtype).requires_grad_()
    attended = torch.ones(ROWS, COLUMNS, dtype=torch.long)
    if padding == "right":
        attended[1, 6:] = attended[2, 3:] = 0
    elif padding == "left":
        attended[1, :3] = attended[2, :6] = 0
    logits = model(inputs_embeds=embeds, attention_mask=attended).logits[attended.bool()]
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), embeds)
    return logits.detach(), gradient


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_as_transformers_eager_attention_bit_for_bit(padding: str) -> None:
    model = opt(torch.float32)
    expected = logits_and_gradient(with_attention(model, "eager"), padding)
    found = logits_and_gradient(with_attention(model, CPU_ATTENTION), padding)
    assert all(map(torch.equal, found, expected))


def test_rounds_bfloat16_no_worse_than_sdpa() -> None:
    model = opt(torch.float64)
    exact = logits_and_gradient(with_attention(model, "sdpa"), "right")
    model.bfloat16()

    def errors(name: str) -> list[float]:
        found = logits_and_gradient(with_attention(model, name), "right")
        return [float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True)]

    of_sdpa = errors("sdpa")
    assert all(1e-4 < error < 0.02 for error in of_sdpa)
    # A fifth more: one draw of rounding errors against another.
    assert all(ours < 1.2 * theirs for ours, theirs in zip(errors(CPU_ATTENTION), of_sdpa, strict=True))


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_as_sdpa_in_fp64(padding: str) -> None:
    model = opt(torch.float64)
    expected = logits_and_gradient(with_attention(model, "sdpa"), padding)
    found = logits_and_gradient(with_attention(model, CPU_ATTENTION), padding)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_generates_as_with_sdpa() -> None:
    model = opt(torch.float64)
    ids = torch.tensor([[5, 6, 7, 8], [1, 1, 9, 10]])
    attended = (ids != 1).long()
    expected, found = (
        with_attention(model, name).generate(ids, attention_mask=attended, max_new_tokens=8, do_sample=False)
        for name in ("sdpa", CPU_ATTENTION)
    )
    assert torch.equal(found, expected)


def test_a_scale_and_no_mask() -> None:
    query, key, value = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64).unbind()
    found, _ = attention_in_products(None, query, key, value, None, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


def test_dropout_is_refused() -> None:
    query = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="dropout of 0.1"):
        attention_in_products(None, query, query, query, None, scaling=1.0, dropout=0.1)
