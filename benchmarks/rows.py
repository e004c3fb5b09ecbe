"""Rows that run one after another, each in a process of its own, with a time limit, into a file that keeps them all.

A row is a function of one of these scripts, or a command. Whatever becomes of it (an error, no memory, its time was up,
the conductor killed), the rows before it are in the file and those after it run.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Nothing here imports torch: the conductor has no context on the card, and takes none of its memory.

MEASURED = "measured"
BEGAN = "ARTKV_BENCHMARK_BEGAN"  # as in step_clock.py
_LAST_LINES = 12
_LAST_LINES_OF_A_COMMAND = 6


@dataclass(frozen=True)
class Row:
    """A row, and how it is measured.

    target: `module:function`, called by row_process.py with the path for its figures and `arguments`, which JSON can
    hold; None: `command` is run instead, and its exit status and last lines are the figures. needs: figures of earlier
    rows that it gets as arguments, argument -> (row's name, figure); None where that row has none. may_be_refused: a
    setting that this version of artkv refuses makes the row skipped, and not failed. environment: more variables.
    """

    name: str
    limit_seconds: float
    target: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    needs: dict[str, tuple[str, str]] = field(default_factory=dict)
    may_be_refused: bool = False
    environment: dict[str, str] = field(default_factory=dict)


class Session:
    """Runs rows and keeps what they gave.

    path: a JSON-lines file that every row is appended to at once; None: kept in memory alone. budget_seconds: of all
    rows together: a row whose limit is more gets what is left, and one that gets less than `least_seconds` is left out.
    """

    def __init__(
        self,
        path: Path | None,
        budget_seconds: float = float("inf"),
        least_seconds: float = 10.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.results: list[dict[str, Any]] = []
        self._path, self._least_seconds = path, least_seconds
        self._ends = time.monotonic() + budget_seconds
        self._environment = {"TOKENIZERS_PARALLELISM": "false"} | (environment or {})

    def note(self, name: str, **figures: Any) -> None:
        """Keeps a row that no process measured."""
        self._keep({"row": name, "status": MEASURED, **figures})

    def run_all(self, rows: Sequence[Row]) -> None:
        """One after another."""
        for row in rows:
            self.run(row)

    def run(self, row: Row) -> dict[str, Any]:
        """Measures a row, whatever comes of it, and returns what was kept."""
        limit = min(row.limit_seconds, self._ends - time.monotonic())
        if limit < min(self._least_seconds, row.limit_seconds):
            return self._keep({"row": row.name, "status": "left out: the time was up"})
        tell(f"{row.name} (at most {limit:.0f} s)")
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = self._measure(row, Path(folder), limit)
            except OSError as error:  # a command that is not there
                found = {"status": f"failed: {error}"}
        return self._keep({"row": row.name, **found, "wall_seconds": round(time.monotonic() - began, 2)})

    def figure(self, row: str, name: str) -> Any:
        """A figure of an earlier row; None where there is none."""
        return next((result.get(name) for result in self.results if result["row"] == row), None)

    def _measure(self, row: Row, folder: Path, limit: float) -> dict[str, Any]:
        figures, log = folder / "figures.json", folder / "log"
        if row.target is None:
            command = list(row.command)
        else:
            needed = {name: self.figure(*where) for name, where in row.needs.items()}
            spec = {"target": row.target, "arguments": row.arguments | needed, "may_be_refused": row.may_be_refused}
            (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
            script = Path(__file__).with_name("row_process.py")
            command = [sys.executable, str(script), str(folder / "spec.json"), str(figures)]
        environment = {**os.environ, **self._environment, **row.environment, BEGAN: repr(time.time())}
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_group(process)
        found = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if row.target is None:
            found = {"exit_status": code, "output": lines[-_LAST_LINES_OF_A_COMMAND:]}
        if code is None:
            found["status"] = f"its time was up after {limit:.0f} s"
        elif (code != 0 and row.target is None) or (code != 0 and "status" not in found):
            found["status"] = f"failed: exit status {code}"
        found.setdefault("status", MEASURED)
        if said := [line for line in lines if line.startswith("artkv: ")]:
            found["said"] = said[:_LAST_LINES]
        if found["status"] != MEASURED:
            found["log"] = lines[-_LAST_LINES:]
        return found

    def _keep(self, result: dict[str, Any]) -> dict[str, Any]:
        self.results.append(result)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        tell(f"{result['row']}: {result['status']}")
        return result


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started: those are in a session of its own."""
    with contextlib.suppress(ProcessLookupError):  # all are gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tell(text: str) -> None:
    """Progress, on stderr: tables alone are on stdout."""
    print(f"benchmark: {text}", file=sys.stderr, flush=True)
