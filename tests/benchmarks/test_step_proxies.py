"""Counts of what a step asks of the host, each against what can be counted by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.benchmarks.conftest import run_script

ROOT = Path(__file__).parents[2]


def test_operations_are_counted_by_phase_and_views_apart(module: Any) -> None:
    counts = module("step_counts")
    value = torch.randn(3, 4, requires_grad=True)
    with counts.StepOperations() as counter:
        with counts.phase(counts.FORWARD):
            loss = (value.t() * 2.0).exp().sum()  # transposed, multiplied, exponential, summed
        with counts.phase(counts.BACKWARD):
            (gradient,) = torch.autograd.grad(loss, value)
        gradient.add_(1.0)
    found = counter.result()
    assert found["computing"][counts.FORWARD] == 3
    assert found["views"][counts.FORWARD] == 2  # the transposed one, and the exponential as backward will read it
    assert found["computing"][counts.BACKWARD] >= 2  # the products with exp's output and with 2, and the first gradient
    assert found["computing"][counts.BETWEEN] == 1


class _Block(nn.Module):
    """Keeps for backward: the exponential's output and the product's first factor, which is the same storage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8), requires_grad=False)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        exponential = (hidden + attention_mask).exp()
        return exponential.view(-1, 8) * exponential.view(-1, 8) * self.weight


def test_kept_bytes_count_each_storage_once(module: Any) -> None:
    hidden, mask = torch.randn(2, 3, 8, requires_grad=True), torch.zeros(2, 3, 8)
    block_bytes = 2 * 3 * 8 * 4
    # The exponential and the output; neither weights, nor input, nor mask. The square is read by no backward.
    assert module("step_counts").kept_bytes(_Block(), hidden, mask) == 2 * block_bytes


def test_padding_is_what_none_but_itself_sees(module: Any) -> None:
    """A row of two visual tokens, two text tokens and three columns of padding, and one that is full."""
    questions = SimpleNamespace(
        position_ids=torch.tensor([[0, 1, 2, 3, 0, 0, 0], [0, 1, 2, 0, 1, 2, 2]]),
        subtree_end=torch.tensor([[4, 4, 4, 4, 5, 6, 7], [3, 3, 3, 7, 7, 6, 7]]),
    )
    assert module("epoch_shapes").packed_padding(questions) == 3


def test_the_whole_script(tmp_path: Path) -> None:
    """Streaming computes no more, and replays leave few operations; a block keeps what the planner says."""
    path = tmp_path / "proxies.json"
    done = run_script("step_proxies.py", "--tiny", "--label", "a trial", "--json", str(path), timeout=400)
    report = json.loads(path.read_text())
    names = ("artkv", "artkv, a graph one operation", "artkv, streamed")
    resident, replayed, streamed = (report["operations"][name]["computing"] for name in names)
    assert streamed["backward"] == resident["backward"]
    # A replayed pass: copies into the graph's inputs and out of its results.
    assert replayed["forward"] < resident["forward"] / 2
    assert replayed["backward"] < resident["backward"]
    assert all(seconds["median"] > 0 for seconds in report["host_seconds"].values())
    for block in report["blocks"]:
        assert block["kept_bytes"] == block["planned_bytes"], block
    for shapes in report["shapes"].values():
        assert shapes["steps"] == shapes["batches"] == 3
        assert shapes["rows_columns"] <= shapes["with_answer_columns"] <= shapes["with_answers"] <= 3
        assert 0 <= shapes["padding_share"] < 1
    assert "a trial" in done.stdout
