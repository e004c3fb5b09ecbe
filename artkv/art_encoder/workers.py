"""Processes that decode pictures: no signal to the whole job ends them, and the end of their rank does."""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker, util

from artkv.parent_process import end_with_parent

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def start_fork_server(preloaded: str) -> None:
    """Starts what forks the workers of all later loaders with "forkserver", which then take none of `_STOPS`.

    A terminal, torchrun and DeepSpeed send what stops a job to all of its processes. The rank saves, for which it
    needs a batch or two more, and fails where a worker has died of the signal. So the fork server begins with these
    signals blocked, which its workers inherit: there is no moment in which one could reach them.

    A fork of a process that has threads can hang; a fork server has none, and imports once what a worker needs.
    preloaded: the module of that.
    """
    multiprocessing.set_forkserver_preload([preloaded])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        resource_tracker.ensure_running()  # Python 3.11 unblocks some of them where it starts this one
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # Before Python's own end, which sends SIGTERM to daemons that an error has left, and waits for them.
    util.Finalize(None, _kill_daemons, exitpriority=0)


def begin_worker(_: int) -> None:
    """The `worker_init_fn` of loaders: PyTorch's own look is for the fork server, which lives as long as workers do."""
    end_with_parent()


def _kill_daemons() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
