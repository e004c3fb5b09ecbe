"""A log file for each rank but the first, whose output is the console's."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artkv.errors import Preempted, RunFailed, UserError


@contextmanager
def rank_log(run_dir: Path, rank: int) -> Iterator[None]:
    """Sends this process's stdout and stderr, its libraries' too, to `run_dir/logs/rank_00001.log`.

    Lines are appended, after one that says when this start was. An error that leaves the context is written
    there, and then goes on with the console restored, so that it is seen there as well. Rank 0 keeps the console.
    """
    if rank == 0:
        yield
        return
    path = run_dir / "logs" / f"rank_{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    console = {stream: os.dup(stream.fileno()) for stream in (sys.__stdout__, sys.__stderr__) if stream is not None}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        for stream in console:
            stream.flush()
            os.dup2(descriptor, stream.fileno())
        job = os.environ.get("SLURM_JOB_ID")
        where = f"process {os.getpid()} on {socket.gethostname()}{'' if job is None else f', job {job}'}"
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}, {where}", file=sys.__stderr__, flush=True)
        yield
    except (UserError, RunFailed, Preempted) as end:
        print(f"artkv: {end}", file=sys.__stderr__)
        raise
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        raise
    finally:
        for stream, original in console.items():
            stream.flush()
            os.dup2(original, stream.fileno())
            os.close(original)
        os.close(descriptor)
