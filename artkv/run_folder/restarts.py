"""`restarts.jsonl`: a line for each time that a supervised training ended before its time."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from artkv.errors import UserError
from artkv.reading import Count, parse_json, read_regular, to_record

RESTARTS = "restarts.jsonl"


@dataclass(frozen=True)
class Restart:
    """One fault. time: unix seconds. step: the last one done. gave_up: why no start came after it, None if one did."""

    time: float
    cause: str
    step: Count
    gave_up: str | None


def append_restart(run_dir: Path, restart: Restart) -> None:
    """Adds a line. A disk that is full, or a run that has no folder, loses it: the supervisor prints it too."""
    with suppress(OSError), (run_dir / RESTARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(restart)) + "\n")


def read_restarts(run_dir: Path) -> list[Restart]:
    """The lines of a run's folder, in order; one that is no record is left out and told, but for one being written."""
    restarts = []
    damaged = []
    try:
        lines = read_regular(run_dir / RESTARTS).splitlines()
    except OSError:
        return []
    for number, line in enumerate(lines, start=1):
        try:
            restarts.append(to_record(Restart, parse_json(line), RESTARTS, ""))
        except (ValueError, UserError):
            if number < len(lines) or not line.startswith(b"{"):
                damaged.append(number)
    if damaged:
        told = ", ".join(map(str, damaged[:3])) + (" and more" if len(damaged) > 3 else "")
        print(f"artkv: {run_dir / RESTARTS}: {len(damaged)} lines are no records and left out: {told}", file=sys.stderr)
    return restarts
