"""The end of a process together with the one that started it."""

import multiprocessing
import os
from threading import Thread


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it by `multiprocessing` is gone, however that ended.

    One that was killed asks nobody to end, and who waits for its next piece of work would wait for ever. Whatever the
    start method: with a fork server the parent is who asked the server. Work that is under way is not finished.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was not started by multiprocessing")
    Thread(target=_end_after, args=(parent,), name="end_with_parent", daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()  # the end of a pipe whose other end the parent has, so that no process number can be another's by now
    os._exit(1)
