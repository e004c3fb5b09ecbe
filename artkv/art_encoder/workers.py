"""Processes that decode pictures, and that no signal to a whole job ends."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def decoding_processes(preloaded: str) -> Iterator[None]:
    """Workers that loaders start inside begin in a fork server, and are gone after the block.

    A terminal, torchrun and DeepSpeed send what stops a job to all of its processes. The rank saves, for which it
    needs a batch or two more, and a worker that had died of the signal would be an error: so these block them all.
    That is why nothing but the block's end ends them, or the death of their rank, which they look for.

    A fork of a process that has threads can hang; a fork server has none, and imports once what a worker needs.
    preloaded: the module of that.
    """
    multiprocessing.set_forkserver_preload([preloaded])
    others = multiprocessing.active_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        resource_tracker.ensure_running()  # which lets some of them through again
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.kill()
                worker.join()
