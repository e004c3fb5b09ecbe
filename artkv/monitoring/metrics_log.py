"""metrics.jsonl: one JSON object a line, for programs to read while the run goes on."""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from artkv.errors import UserError
from artkv.files import reason_of, remedy_for_writing, write_whole
from artkv.monitoring.appended_file import AppendedFile
from artkv.reading import parse_json

Kind = Literal["train", "validation"]

_log = logging.getLogger(__name__)


class MetricsLog:
    """Appends records to a JSON-lines file and cuts it back on resume.

    Each record has `step` (optimizer steps done), `time` (unix seconds, when it was measured), `kind` and the metrics.
    A metric that is not finite is written as null, since JSON has no NaN. One process writes. A disk that is full for
    a while costs no record and tears no line, see `AppendedFile`. Raises `UserError` where the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).resolve()  # a link to another disk stays one
        with self._refused():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._cut_torn_line()
            self._file = AppendedFile(self._path)

    def append(self, step: int, kind: Kind, metrics: Mapping[str, float], seconds: float | None = None) -> None:
        """Writes one record and hands it to the operating system, so that readers see whole lines.

        seconds: the record's `time`; now, where it is None.
        """
        reserved = {"step", "time", "kind"} & metrics.keys()
        if reserved:
            raise ValueError(f"metrics must not be named {', '.join(sorted(reserved))}: each record has them")
        record: dict[str, Any] = {"step": step, "time": time.time() if seconds is None else seconds, "kind": kind}
        record |= {name: _finite(value) for name, value in metrics.items()}
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def truncate_after(self, step: int, redo_validation: bool = False) -> int:
        """Drops the records of steps after `step`, and lines that are no records; returns how many.

        redo_validation: those of a validation of `step` itself too.
        For a resume at `step`, which will write them again. The file is replaced in one rename: after
        a crash it is either the old one or the new one.
        """
        with self._refused():
            lines = self._path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if self._belongs(line, step, redo_validation)]
            dropped = len(lines) - len(kept)
            if dropped:
                self._file.close()
                write_whole(self._path, lambda temporary: temporary.write_bytes(b"".join(kept)))
                self._file = AppendedFile(self._path)
        return dropped

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({reason_of(error)}); "
                f"{remedy_for_writing(error, self._path, 'make room, or give another run.output_dir')}"
            ) from None

    def _belongs(self, line: bytes, step: int, redo_validation: bool) -> bool:
        try:
            record = parse_json(line)
            is_redone = redo_validation and record["step"] == step and record["kind"] == "validation"
            return bool(record["step"] <= step) and not is_redone
        except (ValueError, KeyError, TypeError):  # what a power failure leaves: half lines, zero bytes
            _log.warning("%s: dropped a damaged line: %.80r", self._path, line)
            return False

    def _cut_torn_line(self) -> None:
        """Removes a last line without its newline, so that the next record does not continue it."""
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            _log.warning("%s: dropped a torn last line: %.80r", self._path, content[whole:])
            os.truncate(self._path, whole)


def _finite(value: float) -> float | None:
    """`value` as a plain number (numpy's scalars too), None if it is not finite."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None
