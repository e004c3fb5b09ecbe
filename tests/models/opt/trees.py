"""Triton's kernels, compiled where there is a card and else interpreted (see tests/__init__.py), and trees for them."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tree_kernels() -> ModuleType:
    """The module; skips the test where Triton is not installed."""
    pytest.importorskip("triton")
    from artkv.models.opt import tree_kernels

    return tree_kernels


def random_trees(num_rows: int, num_columns: int, seed: int) -> Tensor:
    """`subtree_end` of random forests, (R, L) int64: roots of any size side by side, and trees below them."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.zeros(num_rows, num_columns, dtype=torch.int64)
    for row in range(num_rows):
        open_ranges = [(0, num_columns)]
        while open_ranges:
            column, stop = open_ranges.pop()
            if column < stop:
                end = int(torch.randint(column + 1, stop + 1, (), generator=generator))
                ends[row, column] = end
                open_ranges += [(column + 1, end), (end, stop)]
    return ends.to(DEVICE)
