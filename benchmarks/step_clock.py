"""The stand of a contestant that has its process, and the card, to itself: it times the loop that it stands in.

`turns.Stand` waits for its turn; this one goes on until it has measured long enough, and then ends the loop. Steps are
timed in stretches of a few, since on CUDA the host has to wait for the device wherever a clock is read. What happens
beside steps (a checkpoint at an epoch's end) is told apart from them, and so is the start.
"""

import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from turns import EndOfTurns

from artkv.monitoring.memory import peak_host_bytes

BEGAN = "ARTKV_BENCHMARK_BEGAN"  # environment variable: when this process was started, by time.time()
_STEPS_OF_A_STRETCH = 5
# By then the usual shapes have been seen, libraries have warmed up and graphs have been recorded.
_UNTIMED_STEPS, _UNTIMED_SECONDS = 8, 4.0
_LONGEST = 2.5  # times `seconds`: how long a row goes on for want of an aside that it waits for


@dataclass
class StepFigures:
    """What a row measured; None is what was not.

    start_seconds: from the process's start to the first step's, imports and the loading of weights included;
    imported_seconds: to when all is imported, and nothing else is done.
    first_step_seconds: the first step itself. step_seconds: median over stretches; slowest, fastest: of stretches.
    questions_per_second: all questions of the stretches over their seconds. asides: seconds of each, by name.
    loads_per_step: frozen blocks copied to the device, of an optimizer step. context_bytes: what of the device's memory
    was taken once this process had a context and nothing else; start_peak_bytes: PyTorch's most before the first step;
    peak_bytes: since then; reserved_bytes: what its allocator holds; device_bytes: taken of the device in all, the most
    seen between steps. loss_off, loss_on: mean loss a token of the first step's questions, prefix off and on.
    """

    batch_size: int
    questions: int = 0
    steps: int = 0
    imported_seconds: float | None = None
    start_seconds: float | None = None
    first_step_seconds: float | None = None
    step_seconds: float | None = None
    slowest_step_seconds: float | None = None
    fastest_step_seconds: float | None = None
    questions_per_second: float | None = None
    asides: dict[str, list[float]] = field(default_factory=dict)
    loads_per_step: float | None = None
    context_bytes: int | None = None
    start_peak_bytes: int | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    peak_host_bytes: int | None = None
    first_rows: list[int] | None = None
    loss_off: float | None = None
    loss_on: float | None = None
    is_complete: bool = False


class StepClock:
    """Called where `turns.Stand` is, with the same verbs.

    actions: what can be asked at the boundary: `losses` before the first step if `takes_losses`, and `loads` at each
    stretch's ends.
    path: gets the figures as JSON after each stretch, so that a process that is killed leaves what it had.
    seconds: of timed steps. waits_for: name of an aside, of which there should be one before the end.
    first_rows: the questions whose loss a peer computes; None: artkv, which says which its first ones are.
    """

    def __init__(
        self,
        path: Path,
        batch_size: int,
        seconds: float,
        waits_for: str | None = None,
        first_rows: list[int] | None = None,
    ) -> None:
        self.actions: dict[str, Callable[..., Any]] = {}
        self.takes_losses = True
        self.figures = StepFigures(batch_size)
        self._path, self._seconds, self._waits_for, self._first_rows = path, seconds, waits_for, first_rows
        self._boundaries = 0
        self._measured_since: float | None = None
        self._stretches: list[float] = []
        self._began = self._first_began = self._beside = self._timed_seconds = 0.0
        self._untimed_seconds = min(_UNTIMED_SECONDS, seconds)
        self._steps = self._questions = self._loads = 0
        self.figures.imported_seconds = since_start()
        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")
            self.figures.context_bytes = taken_device_bytes()

    def boundary(self, questions_of_step: int) -> None:
        """Before each step; `EndOfTurns` when enough is measured."""
        figures = self.figures
        if self._boundaries == 0:
            self._at_the_start()
        elif self._boundaries == 1:
            synchronize()
            figures.first_step_seconds = time.perf_counter() - self._began
        if self._measured_since is None:
            if self._boundaries > _UNTIMED_STEPS and time.perf_counter() - self._first_began >= self._untimed_seconds:
                self._measured_since = time.perf_counter()
                self._begin()
        else:
            self._steps += 1
            if self._steps == _STEPS_OF_A_STRETCH:
                self._end()
                self._begin()
        self._boundaries += 1
        self._questions += questions_of_step

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around the step itself."""
        yield

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Around what is no part of a step."""
        synchronize()
        began = time.perf_counter()
        yield
        synchronize()
        seconds = time.perf_counter() - began
        self.figures.asides.setdefault(name, []).append(seconds)
        self._beside += seconds

    def _at_the_start(self) -> None:
        figures = self.figures
        synchronize()
        figures.start_seconds = since_start()
        if torch.cuda.is_available():
            figures.start_peak_bytes = torch.cuda.max_memory_allocated()
        if self.takes_losses and self._first_rows is not None:
            figures.first_rows = self._first_rows
            figures.loss_off = self.actions["losses"](self._first_rows)
        elif self.takes_losses and "losses" in self.actions:
            found = self.actions["losses"]()
            figures.first_rows, figures.loss_off, figures.loss_on = found["rows"], found["off"], found["on"]
        self._write()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._began = self._first_began = time.perf_counter()

    def _begin(self) -> None:
        self._steps = self._questions = 0
        self._beside = 0.0
        self._loads = self._total_loads()
        synchronize()
        self._began = time.perf_counter()

    def _end(self) -> None:
        synchronize()
        now = time.perf_counter()
        figures, seconds = self.figures, now - self._began - self._beside
        self._stretches.append(seconds / self._steps)
        figures.steps += self._steps
        figures.questions += self._questions
        self._timed_seconds += seconds
        figures.questions_per_second = figures.questions / self._timed_seconds
        figures.step_seconds = statistics.median(self._stretches)
        figures.slowest_step_seconds, figures.fastest_step_seconds = max(self._stretches), min(self._stretches)
        if "loads" in self.actions:
            figures.loads_per_step = (self._total_loads() - self._loads) / self._steps
        assert self._measured_since is not None
        spent = now - self._measured_since
        has_aside = self._waits_for is None or self._waits_for in figures.asides
        figures.is_complete = spent >= self._seconds and (has_aside or spent >= _LONGEST * self._seconds)
        self._write()
        if figures.is_complete:
            raise EndOfTurns

    def _total_loads(self) -> int:
        return int(self.actions["loads"]()) if "loads" in self.actions else 0

    def _write(self) -> None:
        figures = self.figures
        figures.peak_host_bytes = peak_host_bytes()
        if torch.cuda.is_available():
            figures.peak_bytes = torch.cuda.max_memory_allocated()
            figures.reserved_bytes = torch.cuda.memory_reserved()
            figures.device_bytes = max(figures.device_bytes or 0, taken_device_bytes())
        write_figures(self._path, asdict(figures))


def since_start() -> float | None:
    """Seconds since this row's process was started; None where nobody said when that was."""
    return time.time() - float(os.environ[BEGAN]) if BEGAN in os.environ else None


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Whole or not at all, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(figures), encoding="utf-8")
    temporary.replace(path)


def taken_device_bytes() -> int:
    """Of the current CUDA device's memory, what no process can get any more, whoever has it."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def synchronize() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
