"""What a file holds that has many pictures in it, by their names."""

import os
from typing import NamedTuple

import numpy as np

from artkv.errors import UserError

MOST_MEMBERS = 20_000_000


class Members(NamedTuple):
    """The pictures in a file: offset and size in bytes of each, (members,) int64, in the order of their names.

    names: each there once, a relative path that does not leave the file. other_names: what members are called too,
    and the row of each; one may be there several times.
    """

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    other_names: list[tuple[str, int]]


def checked_name(name: str, what: str, remedy: str) -> str:
    """A member's name without `./`; `UserError` where it leads out of the file. what: the member, for the message."""
    normal = os.path.normpath(name)
    if os.path.isabs(normal) or normal.split(os.sep)[0] in (os.pardir, os.curdir) or "\0" in normal:
        raise UserError(f"{what} lies outside the {remedy}")
    return normal
