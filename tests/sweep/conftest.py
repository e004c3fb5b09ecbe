"""A sweep that is done."""

from pathlib import Path

import pytest

from artkv.sweep.plan import Sweep
from tests.sweep.sweeps import GRID, answer, finish_training, make_sweep

STYLES = [4, 6, 5, 18, 20, 19]  # right of twenty, in the order of the runs


@pytest.fixture
def finished(tmp_path: Path) -> Sweep:
    sweep = make_sweep(tmp_path, GRID)
    for run, right in zip(sweep.runs, STYLES, strict=True):
        finish_training(run)
        answer(run, {"on": right, "off": 3, "on-blank": 0} | ({"shuffled": 2} if right > 10 else {}))
    return sweep
