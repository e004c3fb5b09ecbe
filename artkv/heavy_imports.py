"""Imports of the libraries that a command needs, as fast as they go."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Around imports that take seconds: keeps Python's cyclic garbage collector from going through what they make.

    torch, transformers and DeepSpeed make half a million objects that stay to the end. Looking through them again and
    again is a sixth of the time that importing takes, and looking a last time, as the process ends, over a second. So
    nothing is collected meanwhile, and what there is then is left alone for ever (`gc.freeze`), garbage in cycles, too.
    """
    was_on = gc.isenabled()
    if gc.get_freeze_count():
        gc.collect()  # this process has done something since the first time, which may have left more than modules do
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
