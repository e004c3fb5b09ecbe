"""Imports of the libraries that a command needs, as fast as they go."""

import contextlib
import gc
from collections.abc import Iterator

_FROZEN: list[bool] = []


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Around imports that take seconds: keeps Python's cyclic garbage collector from going through what they make.

    torch, transformers and DeepSpeed make half a million objects that stay to the end. Looking through them again and
    again is a sixth of the time that importing takes, and looking a last time, as the process ends, over a second. So
    nothing is collected meanwhile; and what there is after the first time in a process is left alone for ever
    (`gc.freeze`). Not after later ones, when there may be a model that is to be collected some time. transformers finds
    the index of its models where an earlier process has put it.
    """
    from artkv.transformers_index import kept_index  # imports pydantic

    was_on = gc.isenabled()
    gc.disable()
    try:
        with kept_index():
            yield
    finally:
        if not _FROZEN:
            gc.freeze()
            _FROZEN.append(True)
        if was_on:
            gc.enable()
