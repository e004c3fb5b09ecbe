"""Files damaged in every way, the same each time, and what becomes of them."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from artkv.errors import UserError

FLIPS = 400
VALUES: list[Any] = [None, True, -1, 0, 2**70, 1.5, 1e300, "", "x", "\x1b[31m", "\0", [], [1], {}, {"a": 1}, [[[]]]]


def damaged(content: bytes) -> Iterator[bytes]:
    """Flipped bits, cut ends, swapped bytes and zeros, the same each time."""
    chance = random.Random(0)
    for _ in range(FLIPS):
        place = chance.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    for _ in range(FLIPS // 8):
        place, length = chance.randrange(len(content)), chance.randrange(1, 40)
        yield content[:place]
        yield content[:place] + b"\0" * length + content[place + length :]
        yield content[:place] + chance.randbytes(length) + content[place:]
        yield content[:place] + content[place + length :]
    yield from (b"", b"null", b"[]", b"{}", b"\xff\xfe{}", b"NaN", b"[" * 100_000, b"1" * 5000, b'{"a":' * 5000)


def retyped(tree: Any, rebuild: Callable[[Any], Any] = lambda tree: tree) -> Iterator[Any]:
    """The tree with each of its values of each other type, and without it."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield rebuild({other: one for other, one in tree.items() if other != name})
            yield rebuild({**tree, f"{name} too": value})
            for other in VALUES:
                yield rebuild({**tree, name: other})
            yield from retyped(value, lambda new, name=name: rebuild({**tree, name: new}))


def check(read: Callable[[], object], what: object) -> bool:
    """Whether it is refused; anything but a `UserError` is a failure of the test."""
    try:
        read()
    except UserError as error:
        return len(str(error)) < 5000 or pytest.fail(f"a long message: {error}")
    except Exception as error:
        raise AssertionError(f"{what!r:.500}") from error
    return False
