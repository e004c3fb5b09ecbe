"""What grows in a long run is found, and what does not is not."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import theilslopes

ROOT = Path(__file__).parents[2]


def samples(module: Any, **columns: Any) -> list[Any]:
    """Forty samples with noise; columns: what a step number makes of one."""
    long_run, noise = module("long_run"), np.random.default_rng(0)
    return [
        replace(
            long_run.Sample(step, 900 + noise.normal(), 600_000, 28, 9, 10 + noise.normal() / 5, 10 * step, step, 19),
            **{name: of(step) for name, of in columns.items()},
        )
        for step in range(500, 20_001, 500)
    ]


def growing(module: Any, given: list[Any]) -> set[str]:
    long_run = module("long_run")
    trends = [long_run.trend_of(long_run.fitted(given), bound) for bound in long_run.BOUNDS]
    assert {trend.column for trend in trends} == vars(given[0]).keys() - {"step"}
    return {trend.column for trend in trends if not trend.is_flat}


def test_noise_is_flat_and_files_that_are_written_to_grow_evenly(module: Any) -> None:
    assert growing(module, samples(module)) == set()


@pytest.mark.parametrize(
    ("column", "of"),
    [
        ("resident_mib", lambda step: 900 + step / 500),  # 2 kB a step
        ("objects", lambda step: 600_000 + step),
        ("open_files", lambda step: 28 + step // 10_000),
        ("threads", lambda step: 9 + step // 5_000),
        ("step_ms", lambda step: 10 + step / 10_000),
        ("run_files", lambda step: 19 + step // 500),
        ("event_bytes", lambda step: step**2),
        ("metrics_bytes", lambda step: step**1.3),
    ],
)
def test_each_column_that_grows_is_found(module: Any, column: str, of: Any) -> None:
    assert growing(module, samples(module, **{column: of})) == {column}


def test_what_grew_while_it_warmed_up_does_not_count(module: Any) -> None:
    given = samples(module, resident_mib=lambda step: min(900, step / 5))
    assert module("long_run").fitted(given)[0].step == 4500
    assert growing(module, given) == set()


def test_the_slope_is_theils_and_sens(module: Any) -> None:
    steps = list(range(0, 50, 5))
    values = [0.1 * step + (100 if step == 20 else 0) for step in steps]
    assert module("long_run").slope_of(steps, values) == pytest.approx(theilslopes(values, steps).slope)


def test_a_short_run_is_sampled(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/long_run.py", "--steps", "50", "--every", "10", "--paintings", "24"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ARTKV_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]  # so few steps may be called anything
    sampled = [line for line in done.stdout.splitlines() if line.startswith("step=")]
    assert len(sampled) >= 5
    assert "| open_files | " in done.stdout
