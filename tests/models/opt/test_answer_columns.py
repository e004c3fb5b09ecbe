"""The last block at some columns against transformers' whole block, picked from afterwards."""

import copy

import pytest
import torch
from transformers import OPTConfig
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from artkv.models.opt.answer_columns import read_answer_columns
from artkv.models.opt.cpu_attention import CPU_ATTENTION

WIDTH, ROWS, COLUMNS = 24, 3, 11


@pytest.mark.parametrize("attention", ["sdpa", CPU_ATTENTION])
@pytest.mark.parametrize("is_pre_norm", [True, False])
def test_output_and_gradient_at_the_columns(is_pre_norm: bool, attention: str) -> None:
    torch.manual_seed(0)
    config = OPTConfig(hidden_size=WIDTH, ffn_dim=48, num_attention_heads=4, do_layer_norm_before=is_pre_norm)
    config._attn_implementation = attention
    stock = OPTDecoderLayer(config).double().eval()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    block = copy.deepcopy(stock)
    read_answer_columns(block)
    hidden = torch.randn(ROWS, COLUMNS, WIDTH, dtype=torch.float64, requires_grad=True)
    is_seen = torch.rand(ROWS, 1, COLUMNS, COLUMNS) < 0.5
    is_seen |= torch.eye(COLUMNS, dtype=torch.bool)
    mask = torch.zeros(is_seen.shape, dtype=torch.float64).masked_fill_(~is_seen, float("-inf"))
    columns = torch.tensor([[2, 5, 7, 10], [3, 4, 0, 0], [10, 0, 0, 0]])
    expected = stock(hidden, attention_mask=mask)
    output = block(hidden, attention_mask=mask, answer_columns=columns)
    picked = expected[torch.arange(ROWS)[:, None], columns]
    torch.testing.assert_close(output, picked, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(picked)
    (gradient,) = torch.autograd.grad((output * weights).sum(), hidden)
    (expected_gradient,) = torch.autograd.grad((picked * weights).sum(), hidden)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    # Without the option the block is the stock one.
    assert torch.equal(block(hidden, attention_mask=mask), expected)
