"""How far the run is, on the console of rank 0: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class ProgressLine:
    """Shows steps done, time left, loss and rate; on other ranks than 0 every call does nothing.

    On a terminal it is a tqdm bar. Where `stream` is a file or a pipe (Slurm, CI) it is one line about
    every `seconds_between_lines`, and at the first and last step, without carriage returns.
    """

    def __init__(
        self,
        total_steps: int,
        steps_done: int = 0,
        rank: int = 0,
        stream: TextIO | None = None,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._done = self._started_at_step = steps_done
        self._silent = rank != 0
        self._stream = stream or sys.stderr
        self._now = now
        self._started = now()
        self._last_line = -float("inf")
        self._seconds_between_lines = seconds_between_lines
        self._shown: dict[str, str] = {}
        self._bar: tqdm | None = None
        if not self._silent and self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=steps_done,
                desc="training",
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
            )

    def advance(self, steps: int = 1) -> None:
        """Counts optimizer steps; call it after each, it needs nothing from the device."""
        self._done += steps
        if self._silent:
            return
        if self._bar is not None:
            self._bar.update(steps)
        elif self._now() - self._last_line >= self._seconds_between_lines or self._done >= self._total:
            self._write_line()

    def show(self, loss: float | None = None, questions_per_second: float | None = None) -> None:
        """Sets the figures shown beside the steps; None leaves the one before."""
        if loss is not None:
            self._shown["loss"] = f"{loss:.4g}"
        if questions_per_second is not None:
            self._shown["questions/s"] = f"{questions_per_second:.4g}"
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)

    def note(self, message: str) -> None:
        """Prints a line above the bar without tearing it."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands and ends its line."""
        if self._bar is not None:
            self._bar.close()

    def _write_line(self) -> None:
        self._last_line = self._now()
        fresh = self._done - self._started_at_step
        left = (self._now() - self._started) / fresh * max(0, self._total - self._done)
        figures = "".join(f"  {name} {value}" for name, value in self._shown.items())
        print(
            f"step {self._done}/{self._total}{figures}  left {timedelta(seconds=round(left))}",
            file=self._stream,
            flush=True,
        )
