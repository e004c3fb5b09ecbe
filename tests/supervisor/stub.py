"""A rank without a model: says that it lives, does one step, and then what the next line of `script` says.

Called as `stub.py RUN_DIR artkv train ...`. A start takes one line off the file RUN_DIR/../script: die, stop, hang,
error, wrong, asked, done, load (for long, before its step), late (its first sign is) or stop_first (where it has never
been before). What it was started with is appended to RUN_DIR/../starts.
"""

import os
import signal
import sys
import time
from pathlib import Path

from artkv.errors import Preempted, RunFailed, UserError
from artkv.run_folder.heartbeat import heartbeat
from artkv.run_folder.marker import write_marker

ERRORS = {
    "wrong": UserError("my.yaml: is wrong"),
    "error": RunFailed("step 1: it diverged"),
    "asked": Preempted(1, "x"),
}


def main(run_dir: Path, arguments: list[str]) -> None:
    script, starts = run_dir.parent / "script", run_dir.parent / "starts"
    line, *rest = script.read_text().split()
    script.write_text("\n".join(rest))
    with starts.open("a") as file:
        file.write(" ".join(arguments) + "\n")
    if line == "late":
        signal.signal(signal.SIGUSR1, lambda *_: asked_to_stop(run_dir))
        time.sleep(2)
    with heartbeat(Path(arguments[arguments.index("--supervised") + 1]), rank=0) as alive:
        if line == "load":
            time.sleep(10)
        alive.beat("training", 0)
        alive.beat(step=1)
        for phase in ("saving", "training", "saving"):  # the first time is not yet usual
            alive.beat(phase)
        time.sleep(0.6)  # for a look of the supervisor's
        if line == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if line == "stop_first":
            alive.beat("validating")
        if line in ("stop", "stop_first"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if line == "hang":
            signal.signal(signal.SIGTERM, lambda *_: asked_to_stop(run_dir))
            time.sleep(600)
        if line == "late":
            time.sleep(60)
        if line in ERRORS:
            raise ERRORS[line]


def asked_to_stop(run_dir: Path) -> None:
    write_marker(run_dir, 1, "SIGTERM")
    sys.exit(75)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
