"""Whether anything of a run grows with its steps that should not: memory, open files, threads, the time of a step.

One process trains a toy model on a random world with all that a run does: the frozen features' cache, log lines,
TensorBoard, a validation each epoch, checkpoints. Samples are taken inside it, between steps; a line is fitted through
each column of them, and what it gains over the fitted samples is held against a bound.

    python benchmarks/long_run.py --steps 20000
"""

import argparse
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_world import QUESTIONS_PER_PAINTING, make_world, run_settings

import artkv.training.loop as loop
from artkv.config import Config
from artkv.distributed import process_group
from artkv.training.run import train

_SIZE = "tiny"
_VALIDATION_PAINTINGS = 20
# Of the samples: caches fill, libraries warm up, allocators find their size.
_WARM_UP = 0.2
_MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """The state of the process after `step` steps.

    resident_mib: host memory. objects: those that Python's garbage collector follows, after a collection. step_ms:
    median of the steps since the last sample. event_bytes, metrics_bytes: of TensorBoard's files and metrics.jsonl.
    run_files: files in the run's folder, checkpoints included.
    """

    step: int
    resident_mib: float
    objects: int
    open_files: int
    threads: int
    step_ms: float
    event_bytes: int
    metrics_bytes: int
    run_files: int


@dataclass(frozen=True)
class Bound:
    """What a column may gain over the fitted samples: `share` of its median, or `most` if that is more.

    is_linear: it is written to, and has to grow by the same for each step: the bound is on how much more the second
    half of the fitted samples gains a step than the first half.
    """

    column: str
    share: float
    most: float = 0.0
    is_linear: bool = False


BOUNDS = (
    Bound("resident_mib", 0.02),
    Bound("objects", 0.01),
    Bound("open_files", 0.0, 0.5),
    Bound("threads", 0.0, 0.5),
    Bound("step_ms", 0.10),
    Bound("run_files", 0.0, 0.5),
    Bound("event_bytes", 0.05, is_linear=True),
    Bound("metrics_bytes", 0.05, is_linear=True),
)


@dataclass(frozen=True)
class Trend:
    """A column over the fitted samples. slope: what it gains in a thousand steps. is_flat: it is within its bound."""

    column: str
    first: float
    last: float
    slope: float
    is_flat: bool


def slope_of(steps: Sequence[int], values: Sequence[float]) -> float:
    """Theil and Sen's: the median of the slopes between all pairs, which single samples cannot move."""
    slopes = [
        (values[later] - values[earlier]) / (steps[later] - steps[earlier])
        for earlier in range(len(steps))
        for later in range(earlier + 1, len(steps))
    ]
    return statistics.median(slopes)


def trend_of(samples: Sequence[Sample], bound: Bound) -> Trend:
    """Whether a column of the fitted samples, four at least, stays within its bound."""
    steps = [one.step for one in samples]
    values = [float(getattr(one, bound.column)) for one in samples]
    slope = slope_of(steps, values)
    if bound.is_linear:
        middle = len(samples) // 2
        before, after = slope_of(steps[:middle], values[:middle]), slope_of(steps[middle:], values[middle:])
        is_flat = after - before <= bound.share * before + bound.most
    else:
        allowed = max(bound.share * statistics.median(values), bound.most)
        is_flat = slope * (steps[-1] - steps[0]) <= allowed
    return Trend(bound.column, values[0], values[-1], 1000 * slope, is_flat)


def fitted(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Those after the warm-up."""
    return samples[math.ceil(_WARM_UP * len(samples)) :]


class Sampler:
    """Takes a sample between two steps, each `every` steps."""

    def __init__(self, run_dir: Path, every: int) -> None:
        self.samples: list[Sample] = []
        self._run_dir, self._every = run_dir, every
        self._steps, self._seconds = 0, np.zeros(every)

    def step_took(self, seconds: float) -> None:
        """Counts a step."""
        self._seconds[self._steps % self._every] = seconds
        self._steps += 1
        if self._steps % self._every == 0:
            self.samples.append(self._sample())
            print(" ".join(f"{name}={value:.6g}" for name, value in asdict(self.samples[-1]).items()), flush=True)

    def _sample(self) -> Sample:
        gc.collect()
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        numbers = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if len(line.split()) > 1}
        files = [path for path in self._run_dir.rglob("*") if path.is_file() and not path.is_symlink()]
        return Sample(
            step=self._steps,
            resident_mib=int(numbers["VmRSS"]) * 1024 / _MIB,
            objects=len(gc.get_objects()),
            open_files=len(os.listdir("/proc/self/fd")),
            threads=int(numbers["Threads"]),
            step_ms=1000 * float(np.median(self._seconds)),
            event_bytes=sum(path.stat().st_size for path in files if "tfevents" in path.name),
            metrics_bytes=(self._run_dir / "metrics.jsonl").stat().st_size,
            run_files=len(files),
        )


def settings(world: Path, folder: Path, steps: int, paintings: int, batch: int) -> Config:
    """Of a run of `steps` steps at least, with everything on that a run can have."""
    on = {"cache": True, "packing": True, "answer_logits": True}
    tree: dict[str, Any] = run_settings(world, _SIZE, "alike", folder / "run", batch, "float32", on)
    header, *rows = (world / "alike.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    validation = folder / "validation.csv"
    validation.write_text("".join([header, *rows[: _VALIDATION_PAINTINGS * QUESTIONS_PER_PAINTING]]), encoding="utf-8")
    tree["dataset"]["val"] = validation
    tree["evaluation"] = {"each_epoch": True, "max_new_tokens": 8}
    tree["run"] |= {"checkpoint_every": 500, "log_every": 50}
    # At most, since paintings stay together; a few steps more than were asked for do no harm.
    tree["training"]["num_epochs"] = math.ceil(steps / (paintings * QUESTIONS_PER_PAINTING // batch))
    return Config.model_validate(tree)


def run(options: argparse.Namespace, folder: Path) -> list[Sample]:
    """Trains, and returns the samples."""
    world = folder / "world"
    make_world(world, _SIZE, options.paintings)
    config = settings(world, folder, options.steps, options.paintings, options.batch)
    sampler = Sampler(config.run.output_dir, options.every)
    true_step = loop.step_together

    def timed_step(*inputs: Any) -> Any:
        began = time.perf_counter()
        report = true_step(*inputs)
        sampler.step_took(time.perf_counter() - began)
        return report

    loop.step_together = timed_step
    torch.set_num_threads(1)
    with process_group(timeout_minutes=5) as ranks:
        train(config, None, ranks)
    return sampler.samples


def format_trends(trends: Sequence[Trend]) -> str:
    """A row for each column, as a table of Markdown."""
    lines = ["| | first | last | a thousand steps add | |", "|---|---|---|---|---|"]
    for one in trends:
        verdict = "flat" if one.is_flat else "GROWS"
        if one.is_flat and any(bound.column == one.column and bound.is_linear for bound in BOUNDS):
            verdict = "the same for each step"
        lines.append(f"| {one.column} | {one.first:,.6g} | {one.last:,.6g} | {one.slope:,.3g} | {verdict} |")
    return "\n".join(lines)


def main() -> int:
    """Runs, prints the table, and exits with 1 where something grows."""
    parser = argparse.ArgumentParser(description="trains for long and looks for what grows")
    parser.add_argument("--steps", type=int, default=20_000, help="of the run, at least (default 20000)")
    parser.add_argument("--every", type=int, default=500, help="steps between two samples (default 500)")
    parser.add_argument("--paintings", type=int, default=600, help="of the set, six questions each (default 600)")
    parser.add_argument("--batch", type=int, default=12, help="questions a step (default 12)")
    parser.add_argument("--json", type=Path, help="write samples and trends there")
    options = parser.parse_args()
    if options.steps < 5 * options.every:
        parser.error("--steps: give five times --every at least, for a line to be fitted")
    with tempfile.TemporaryDirectory() as folder:
        samples = run(options, Path(folder))
    trends = [trend_of(fitted(samples), bound) for bound in BOUNDS]
    print(f"\nsteps {fitted(samples)[0].step} to {samples[-1].step}:\n{format_trends(trends)}")
    if options.json is not None:
        tree = {"samples": [asdict(one) for one in samples], "trends": [asdict(one) for one in trends]}
        options.json.write_text(json.dumps(tree, indent=2), encoding="utf-8")
    return 0 if all(one.is_flat for one in trends) else 1


if __name__ == "__main__":
    sys.exit(main())
