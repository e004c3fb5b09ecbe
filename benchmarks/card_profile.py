"""Where a training step's time goes on a card: kernels, host, and what makes the host wait.

A row of card_session.py; profile_step.py says more of DeepSpeed's part, and runs on a CPU too.
"""

import collections
import contextlib
import statistics
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from artkv_row import run_artkv
from step_clock import synchronize, taken_device_bytes, write_figures
from torch.profiler import ProfilerActivity, profile
from turns import EndOfTurns

# By then a world of 320 paintings has shown its shapes twice, so that graphs are there.
_UNTIMED_STEPS, _TIMED_STEPS, _PROFILED_STEPS, _WATCHED_STEPS = 45, 20, 5, 2
_MOST_KERNELS = 30
_PAUSES = (2, 5, 20)  # microseconds


@dataclass
class Profile:
    """host_seconds: median from one step's beginning to the next, on the host's clock, and nothing else on.

    device_seconds, kernels: busy and launched a step, under torch's profiler, which slows the host (profiled_seconds a
    step). idle: milliseconds a step between kernels, by how many microseconds such a pause lasts; longest_idle: of the
    longest ones, by the kernel after them. by_kernel, by_host: milliseconds and calls a step of those that took most.
    waits: where the host waited for the device in `_WATCHED_STEPS` steps, innermost call first, and how often.
    """

    host_seconds: float | None = None
    device_bytes: int | None = None
    profiled_seconds: float | None = None
    device_seconds: float | None = None
    kernels: float | None = None
    idle: dict[str, float] = field(default_factory=dict)
    longest_idle: dict[str, float] = field(default_factory=dict)
    by_kernel: dict[str, tuple[float, float]] = field(default_factory=dict)
    by_host: dict[str, tuple[float, float]] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)


class ProfileStand:
    """Called where `turns.Stand` is."""

    def __init__(self, path: Path) -> None:
        self.actions: dict[str, Any] = {}
        self._path, self._found = path, Profile()
        self._boundaries, self._times, self._waits = 0, list[float](), collections.Counter[str]()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(activities=activities)

    def boundary(self, questions_of_step: int) -> None:
        """Before each step; `EndOfTurns` when all is seen."""
        self._boundaries += 1
        after = self._boundaries - _UNTIMED_STEPS
        if after >= 0:
            self._times.append(time.perf_counter())
        if after == _TIMED_STEPS:
            steps = [later - earlier for earlier, later in zip(self._times, self._times[1:], strict=False)]
            self._found.host_seconds = statistics.median(steps)
            if torch.cuda.is_available():
                self._found.device_bytes = taken_device_bytes()
            synchronize()
            self._began = time.perf_counter()
            self._profiler.__enter__()
        elif after == _TIMED_STEPS + _PROFILED_STEPS:
            synchronize()
            self._found.profiled_seconds = (time.perf_counter() - self._began) / _PROFILED_STEPS
            self._profiler.__exit__(None, None, None)
            self._read_profile()
            self._watch_waits()
        elif after == _TIMED_STEPS + _PROFILED_STEPS + _WATCHED_STEPS:
            self._found.waits = dict(self._waits.most_common())
            write_figures(self._path, asdict(self._found))
            raise EndOfTurns

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around a step."""
        yield

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Around what is no part of a step: its time is in one step's of the median."""
        yield

    def _read_profile(self) -> None:
        sums: dict[bool, dict[str, list[float]]] = {True: {}, False: {}}
        kernels = []
        for event in self._profiler.events():
            is_kernel = event.device_type != torch.autograd.DeviceType.CPU
            of_name = sums[is_kernel].setdefault(event.name[:110], [0.0, 0.0])
            of_name[0] += (event.time_range.elapsed_us() if is_kernel else event.self_cpu_time_total) / 1e3
            of_name[1] += 1
            if is_kernel:
                kernels.append((event.time_range.start, event.time_range.end, event.name[:110]))
        self._read_idle(kernels)

        def most(of: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
            ordered = sorted(of.items(), key=lambda item: -item[1][0])[:_MOST_KERNELS]
            return {name: (took / _PROFILED_STEPS, calls / _PROFILED_STEPS) for name, (took, calls) in ordered}

        self._found.by_kernel, self._found.by_host = most(sums[True]), most(sums[False])
        self._found.device_seconds = sum(took for took, _ in sums[True].values()) / 1e3 / _PROFILED_STEPS
        self._found.kernels = sum(calls for _, calls in sums[True].values()) / _PROFILED_STEPS
        write_figures(self._path, asdict(self._found))

    def _read_idle(self, kernels: list[tuple[float, float, str]]) -> None:
        idle: collections.Counter[str] = collections.Counter()
        before: collections.Counter[str] = collections.Counter()
        busy_until = float("inf")
        for start, end, name in sorted(kernels):
            pause = max(0.0, start - busy_until)
            idle[next((f"up to {most}" for most in _PAUSES if pause <= most), "more")] += pause  # type: ignore[assignment]
            if pause > _PAUSES[-1]:
                before[name] += pause  # type: ignore[assignment]
            busy_until = end if busy_until == float("inf") else max(busy_until, end)
        self._found.idle, self._found.longest_idle = (
            {name: pause / 1e3 / _PROFILED_STEPS for name, pause in of.most_common(12)} for of in (idle, before)
        )

    def _watch_waits(self) -> None:
        def note(*_: Any, **__: Any) -> None:
            frames = [
                f for f in traceback.extract_stack() if Path(f.filename).name not in ("warnings.py", "card_profile.py")
            ]
            self._waits[" < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-5:]))] += 1

        warnings.showwarning = note
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")


def run_profile(path: Path, tree: dict[str, Any]) -> None:
    """The process of a row: `artkv train` by the settings of `tree`."""
    with contextlib.suppress(EndOfTurns):
        run_artkv(ProfileStand(path), tree)  # type: ignore[arg-type]


def profile_lines(results: list[dict[str, Any]]) -> list[str]:
    """The rows in short; the rows' file has all."""
    lines = []
    for result in results:
        if result.get("device_seconds") is None:
            continue
        lines.append(
            f"{result['row']}: {result['host_seconds'] * 1e3:.1f} ms from step to step; under the profiler "
            f"{result['profiled_seconds'] * 1e3:.1f}, of which the device is busy {result['device_seconds'] * 1e3:.1f} "
            f"in {result['kernels']:.0f} kernels; idle between them, by microseconds a pause: {result['idle']}; "
            f"waits of the host in {_WATCHED_STEPS} steps: {result['waits'] or 0}"
        )
        lines += [f"    {took:6.2f} ms {calls:5.0f} x {name}" for name, (took, calls) in result["by_kernel"].items()][
            :12
        ]
    return lines
