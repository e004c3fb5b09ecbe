"""bitsandbytes layers in a block's place: close to the full weights, gradients through, nothing trains."""

import pytest
import torch
from torch import Tensor, nn

from artkv.frozen.quantised import quantise_linears

pytest.importorskip("bitsandbytes", reason="bitsandbytes is optional: pip install 'artkv[quantised]'")

WIDTH = 128


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


# Relative errors of output and input gradient on random weights. Seen: int8 0.003 and 0.017, nf4 0.031 and 0.070.
@pytest.mark.parametrize(("quantisation", "output_error", "gradient_error"), [("int8", 0.01, 0.04), ("nf4", 0.1, 0.15)])
def test_output_and_gradient_are_close_and_weights_are_small(
    quantisation: str, output_error: float, gradient_error: float
) -> None:
    torch.manual_seed(0)
    full = Block().eval().requires_grad_(False)
    values = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    with torch.device("meta"):
        small = Block().eval().requires_grad_(False)
    quantise_linears(small, values.__getitem__, quantisation, torch.float32, torch.device("cpu"))
    small.norm.load_state_dict(full.norm.state_dict(), assign=True)
    small.norm.requires_grad_(False)

    x = torch.randn(16, WIDTH)
    results = []
    for block in (full, small):
        leaf = x.clone().requires_grad_()
        out = block(leaf)
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    (out, grad), (small_out, small_grad) = results
    assert 0 < (small_out - out).norm() < output_error * out.norm()
    assert 0 < (small_grad - grad).norm() < gradient_error * grad.norm()
    assert not any(p.requires_grad for p in small.parameters())
    stored = sum(p.numel() * p.element_size() for p in (small.up.weight, small.down.weight))
    elements = values["up.weight"].numel() + values["down.weight"].numel()
    assert stored == elements * {"int8": 1.0, "nf4": 0.5}[quantisation]
    # The caller's tensors, views of a file in use, are as they were.
    assert all(torch.equal(values[name], tensor) for name, tensor in full.state_dict().items())


def test_a_width_that_bitsandbytes_cannot_pack_on_a_cpu_is_computed_without() -> None:
    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(40, 24)).eval()
    values = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    with torch.device("meta"):
        small = nn.Sequential(nn.Linear(40, 24)).eval().requires_grad_(False)
    quantise_linears(small, values.__getitem__, "nf4", torch.float32, torch.device("cpu"))
    x = torch.randn(16, 40)
    with torch.no_grad():  # where it packs
        assert 0 < (small(x) - full(x)).norm() < 0.15 * full(x).norm()  # seen: 0.08
