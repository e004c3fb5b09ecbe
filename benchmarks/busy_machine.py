"""What waiting threads cost on a machine that is shared: OpenMP's ways to wait, alone and beside busy processes.

A worker trains a small EfficientNet on random pictures with as many threads as there are cores. OpenMP reads how to
wait when its library is loaded, so each turn is a process of its own; ways take turns, and what is told is the median
over turns; alone, over those in which others took less than a tenth of the machine. Beside the worker run `loops`, a
process for each core that computes with one thread and never waits, or `workers`, one further worker that waits the
same way.

    python benchmarks/busy_machine.py --turns 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
}
LOADS = ("alone", "loops", "workers")
_VARIABLES = {name for way in WAYS.values() for name in way}
_CORES = len(os.sched_getaffinity(0))
_NOT_ALONE = 0.1  # of the machine


def busy_seconds() -> float:
    """What all processors have computed since the machine's start, by whomever."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def work(seconds: float) -> None:
    """Trains for so long after three steps.

    Prints a step's median milliseconds, its mean ones of CPU time, and the share of the machine that others took.
    """
    import timm
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(_CORES)
    model = timm.create_model("efficientnet_b0", num_classes=27)
    optimizer = torch.optim.AdamW(model.parameters())
    pictures, styles = torch.randn(16, 3, 80, 80), torch.randint(27, (16,))
    took: list[float] = []
    start, cpu, busy, end = 0.0, 0.0, 0.0, float("inf")
    while len(took) < 4 or time.perf_counter() < end:
        if len(took) == 3:
            start, cpu, busy = time.perf_counter(), time.process_time(), busy_seconds()
            end = start + seconds
        began = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pictures), styles).backward()
        optimizer.step()
        took.append(time.perf_counter() - began)
    own, steps = time.process_time() - cpu, len(took) - 3
    others = (busy_seconds() - busy - own) / (time.perf_counter() - start) / os.cpu_count()
    print(json.dumps([1000 * statistics.median(took[3:]), 1000 * own / steps, others]))


def turn(way: str, load: str, seconds: float) -> tuple[float, float, float]:
    """What `work` prints; the busy processes beside the worker are ended after it."""
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES} | WAYS[way]
    command = [sys.executable, __file__, "--work"]
    busy: list[list[str]] = []
    if load == "loops":
        busy = [[sys.executable, "-c", "while True: pass"]] * _CORES
    elif load == "workers":
        busy = [[*command, "1e9"]]
    running = [subprocess.Popen(one, env=environment, stdout=subprocess.DEVNULL) for one in busy]
    try:
        if load == "workers":
            time.sleep(8)  # imports
        done = subprocess.run([*command, str(seconds)], env=environment, check=True, capture_output=True, text=True)
    finally:
        for process in running:
            process.kill()
            process.wait()
    step, cpu, others = json.loads(done.stdout)
    return step, cpu, others


def format_figures(figures: dict[str, dict[str, list[tuple[float, float, float]]]]) -> str:
    """A row for each way, as a table of Markdown: median milliseconds of a step, and turns that counted, by load."""
    lines = [f"| | {' | '.join(f'{load} | turns' for load in figures)} |", f"|---|{'---|---|' * len(figures)}"]
    for way in WAYS:
        cells = []
        for load, ways in figures.items():
            counted = [step for step, _, others in ways[way] if load != "alone" or others < _NOT_ALONE]
            cells += [f"{statistics.median(counted):.0f}" if counted else "", str(len(counted))]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Takes turns, and prints the table."""
    parser = argparse.ArgumentParser(description="measures OpenMP's ways to wait on a busy machine")
    parser.add_argument("--turns", type=int, default=5, help="of each way under each load (default 5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn (default 6)")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS, help="what runs beside it (default all)")
    parser.add_argument("--json", type=Path, help="write each turn's figures there")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        work(options.work)
        return
    figures: dict[str, dict[str, list[tuple[float, float, float]]]]
    figures = {load: {way: [] for way in WAYS} for load in options.loads}
    for _ in range(options.turns):
        for load in options.loads:
            for way in WAYS:
                figures[load][way].append(turn(way, load, options.seconds))
                print(load, way, figures[load][way][-1], file=sys.stderr, flush=True)
    print(format_figures(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
