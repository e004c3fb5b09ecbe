"""A log file for each rank but the first, whose output is the console's; neither ends a run by a disk that is full."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from artkv.errors import Preempted, RunFailed, UserError
from artkv.files import reason_of


@contextmanager
def rank_log(run_dir: Path, rank: int) -> Iterator[None]:
    """Sends this process's stdout and stderr, its libraries' too, to `run_dir/logs/rank_00001.log`.

    Lines are appended, after one that says when this start was. An error that leaves the context is written
    there, and then goes on with the console restored, so that it is seen there as well. Rank 0 keeps the console. What
    neither takes, on a full disk or a terminal that is gone, is lost and raises nothing.
    """
    descriptor = None
    if rank > 0:
        path = run_dir / "logs" / f"rank_{rank:05d}.log"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            print(
                f"artkv: [rank {rank}] {path}: cannot be written ({reason_of(error)}); this rank's output goes to the "
                "console",
                file=sys.stderr,
            )
    with lossy_console():
        if descriptor is None:
            yield
        else:
            with _redirected(descriptor, rank):
                yield


@contextmanager
def _redirected(descriptor: int, rank: int) -> Iterator[None]:
    console = {stream: os.dup(stream.fileno()) for stream in (sys.__stdout__, sys.__stderr__) if stream is not None}
    try:
        for stream in console:
            _flush(stream)
            os.dup2(descriptor, stream.fileno())
        job = os.environ.get("SLURM_JOB_ID")
        where = f"process {os.getpid()} on {socket.gethostname()}{'' if job is None else f', job {job}'}"
        with suppress(OSError):
            print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}, {where}", file=sys.__stderr__, flush=True)
        yield
    except (UserError, RunFailed, Preempted) as end:
        with suppress(OSError):
            print(f"artkv: {end}", file=sys.__stderr__)
        raise
    except BaseException:
        with suppress(OSError):
            traceback.print_exc(file=sys.__stderr__)
        raise
    finally:
        for stream, original in console.items():
            _flush(stream)
            os.dup2(original, stream.fileno())
            os.close(original)
        os.close(descriptor)


class _Lossy:
    """A stream whose writes raise no `OSError`; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        _flush(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lossy_console() -> Iterator[None]:
    """Loses what cannot be printed, on a full disk or a terminal that is gone, and raises nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Lossy(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _flush(stream: TextIO) -> None:
    with suppress(OSError):
        stream.flush()
