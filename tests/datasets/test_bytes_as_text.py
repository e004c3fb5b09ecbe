"""Bytes that are no UTF-8 are told for what they are."""

import pytest

from artkv.datasets.bytes_as_text import describe_damage


@pytest.mark.parametrize(
    ("content", "is_last", "has_utf8", "told"),
    [
        (b"caf\xe9,oil\n", False, False, "byte 0xE9 at column 4 is not UTF-8; save the file as UTF-8 (if"),
        (b"caf\xe9,oil\n", False, True, "byte 0xE9 at column 4 is not UTF-8, as the rest of the file is:"),
        ("Dürer, 茶".encode()[:-1], True, True, "the file ends inside a character: 0xE8 0x8C at column 8 lacks"),
        ("x😀".encode()[:-1], True, True, "the file ends inside a character: 0xF0 0x9F 0x98 at column 2 lacks"),
        (b"a\xc3", True, True, "the file ends inside a character: 0xC3 at column 2 lacks what should"),
        (b"a\xc3", True, False, "it was cut off, fetch it whole (if it is Latin-1: iconv"),
        (b"a\xc3", False, True, "byte 0xC3 at column 2 is not UTF-8, as the rest of the file is"),
        (b"x\xed\xa0\xbd\xed\xb8\x80y\n", False, False, "the bytes 0xED 0xA0 0xBD at column 2 are half"),
        (b"x\xff", True, True, "byte 0xFF at column 2 is not UTF-8, as the rest"),
    ],
)  # fmt: skip
def test_what_is_no_utf8_is_told(content: bytes, is_last: bool, has_utf8: bool, told: str) -> None:
    line = content.decode("utf-8", "surrogateescape")
    start = next(place for place, character in enumerate(line) if "\udc80" <= character <= "\udcff")
    assert told in describe_damage(line, start, is_last, has_utf8)
