"""Prefixed cross-attention against NumPy and against transformers' stock layer."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention

from artkv.kv_modulation import KVPrefix, PrefixedCrossAttention

PAINTINGS, QUERIES, IMAGE_TOKENS, PREFIX_TOKENS, HEADS, WIDTH, IMAGE_WIDTH = 3, 4, 7, 2, 3, 12, 10
HEAD_WIDTH = WIDTH // HEADS


@pytest.fixture
def stock() -> Blip2QFormerMultiHeadAttention:
    torch.manual_seed(0)
    config = Blip2QFormerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, encoder_hidden_size=IMAGE_WIDTH, attention_probs_dropout_prob=0.1
    )
    config._attn_implementation = "sdpa"
    return Blip2QFormerMultiHeadAttention(config, is_cross_attention=True).eval()


@pytest.fixture
def prefixed(stock: Blip2QFormerMultiHeadAttention) -> PrefixedCrossAttention:
    return PrefixedCrossAttention(stock.query, stock.key, stock.value, HEADS, layer_index=0)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(PAINTINGS, QUERIES, WIDTH, generator=generator, dtype=dtype)
    return queries, torch.randn(PAINTINGS, IMAGE_TOKENS, IMAGE_WIDTH, generator=generator, dtype=dtype)


def prefix(num_tokens: int = PREFIX_TOKENS, dtype: torch.dtype = torch.float32, seed: int = 2) -> KVPrefix:
    generator = torch.Generator().manual_seed(seed)
    shape = (PAINTINGS, HEADS, num_tokens, HEAD_WIDTH)
    k, v = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return KVPrefix(k, v)


def numpy_attention(
    layer: PrefixedCrossAttention, queries: torch.Tensor, image: torch.Tensor, kv: KVPrefix | None, mask: np.ndarray
) -> np.ndarray:
    """One painting, head, query and key at a time. mask: (paintings, prefix + image tokens) bool."""
    q, k, v = (
        (x.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy())
        for x, linear in ((queries, layer.query), (image, layer.key), (image, layer.value))
    )
    out = np.zeros((PAINTINGS, QUERIES, WIDTH))
    for painting in range(PAINTINGS):
        for head in range(HEADS):
            part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            keys, values = k[painting, :, part], v[painting, :, part]
            if kv is not None:
                keys = np.concatenate([kv.k[painting, head].numpy(), keys])
                values = np.concatenate([kv.v[painting, head].numpy(), values])
            for query in range(QUERIES):
                scores = np.array([q[painting, query, part] @ key for key in keys]) / np.sqrt(HEAD_WIDTH)
                weights = np.where(mask[painting], np.exp(scores - scores.max()), 0.0)
                out[painting, query, part] = (weights / weights.sum()) @ values
    return out


@pytest.mark.parametrize("masking", ["none", "bool", "additive"])
def test_prefix_equals_numpys(prefixed: PrefixedCrossAttention, masking: str) -> None:
    prefixed = prefixed.double()
    queries, image = inputs(torch.float64)
    image_mask = np.ones((PAINTINGS, IMAGE_TOKENS), dtype=bool)
    mask = None
    if masking != "none":
        image_mask[1, 4:] = False
        mask = torch.from_numpy(image_mask)[:, None, None, :]
        if masking == "additive":
            mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    kv = prefix(dtype=torch.float64)
    result, _ = prefixed(queries, encoder_hidden_states=image, encoder_attention_mask=mask, modulation=kv)
    # The prefix is always attended to: ones in front of the mask.
    full_mask = np.concatenate([np.ones((PAINTINGS, PREFIX_TOKENS), dtype=bool), image_mask], axis=1)
    expected = numpy_attention(prefixed, queries, image, kv, full_mask)
    # fp64 on both sides; the worst seen is 9e-16.
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_tokens", [None, 0])
def test_no_prefix_tokens_equal_the_stock_layer_bit_for_bit(
    stock: Blip2QFormerMultiHeadAttention, prefixed: PrefixedCrossAttention, num_tokens: int | None
) -> None:
    queries, image = inputs()
    mask = torch.ones(PAINTINGS, 1, 1, IMAGE_TOKENS, dtype=torch.bool)
    mask[1, :, :, 4:] = False
    kv = None if num_tokens is None else prefix(num_tokens)
    expected, _ = stock(queries, encoder_hidden_states=image, encoder_attention_mask=mask)
    result, _ = prefixed(queries, encoder_hidden_states=image, encoder_attention_mask=mask, modulation=kv)
    assert torch.equal(result, expected)


def test_a_closed_gate_gives_the_stock_layer_and_an_open_one_the_prefix(prefixed: PrefixedCrossAttention) -> None:
    queries, image = inputs(torch.float64)
    prefixed = prefixed.double()
    kv = prefix(dtype=torch.float64)
    stock_out, _ = prefixed(queries, encoder_hidden_states=image)
    prefix_out, _ = prefixed(queries, encoder_hidden_states=image, modulation=kv)
    for gate in (0.0, 0.7):
        gated = KVPrefix(kv.k, kv.v, torch.full((1,), gate, dtype=torch.float64))
        result, _ = prefixed(queries, encoder_hidden_states=image, modulation=gated)
        expected = stock_out + np.tanh(gate) * (prefix_out - stock_out)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)
    assert (prefix_out - stock_out).abs().max() > 0.1


def test_zero_keys_and_values_are_not_the_stock_layer(prefixed: PrefixedCrossAttention) -> None:
    """Why `gate: zero` is a gate: a zero prefix still takes attention mass."""
    queries, image = inputs()
    zeros = torch.zeros(PAINTINGS, HEADS, PREFIX_TOKENS, HEAD_WIDTH)
    stock_out, _ = prefixed(queries, encoder_hidden_states=image)
    zero_out, _ = prefixed(queries, encoder_hidden_states=image, modulation=KVPrefix(zeros, zeros))
    assert (zero_out - stock_out).abs().max() > 0.01


def test_each_layer_takes_its_own_prefix(prefixed: PrefixedCrossAttention) -> None:
    queries, image = inputs()
    own, other = prefix(seed=5), prefix(seed=6)
    stacked = KVPrefix(torch.stack([other.k, own.k]), torch.stack([other.v, own.v]))
    second = PrefixedCrossAttention(prefixed.query, prefixed.key, prefixed.value, HEADS, layer_index=1)
    result, _ = second(queries, encoder_hidden_states=image, modulation=stacked)
    expected, _ = prefixed(queries, encoder_hidden_states=image, modulation=own)
    assert torch.equal(result, expected)


def test_two_live_graphs_and_recomputation_keep_their_own_prefix(prefixed: PrefixedCrossAttention) -> None:
    """A prefix kept on the module would be the second one's in both backward passes."""
    queries, image = inputs()
    prefixes = [prefix(seed=seed) for seed in (5, 6)]

    def gradients(recompute: bool, interleaved: bool) -> list[torch.Tensor]:
        leaves = [KVPrefix(p.k.clone().requires_grad_(), p.v.clone().requires_grad_()) for p in prefixes]

        def forward(kv: KVPrefix) -> torch.Tensor:
            def call() -> torch.Tensor:
                return prefixed(queries, encoder_hidden_states=image, modulation=kv)[0].square().sum()

            return checkpoint(call, use_reentrant=False) if recompute else call()

        if interleaved:
            losses = [forward(kv) for kv in leaves]
            for loss in losses:
                loss.backward()
        else:
            for kv in leaves:
                forward(kv).backward()
        return [grad for kv in leaves for grad in (kv.k.grad, kv.v.grad) if grad is not None]

    expected = gradients(recompute=False, interleaved=False)
    assert len(expected) == 4
    for recompute in (False, True):
        for one, other in zip(gradients(recompute, interleaved=True), expected, strict=True):
            assert torch.equal(one, other)


def test_parameter_names_stay_those_of_the_stock_layer(
    stock: Blip2QFormerMultiHeadAttention, prefixed: PrefixedCrossAttention
) -> None:
    assert prefixed.state_dict().keys() == stock.state_dict().keys()
    copy.deepcopy(prefixed).load_state_dict(stock.state_dict(), strict=True)
