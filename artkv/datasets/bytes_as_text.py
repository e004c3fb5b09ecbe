"""What bytes are that stand in a text and are not UTF-8: of another encoding, cut off, or half of a UTF-16 pair."""

import re
from collections.abc import Iterable

_RECODE = {
    "latin-1": " (if it is Latin-1: iconv -f latin1 -t utf-8)",
    "cp1252": " (if it is Windows-1252: iconv -f cp1252 -t utf-8)",
}
# Of Windows-1252: what is no character, and those that are in no words, such as daggers and the sign for per mille.
_NOT_OF_WINDOWS = frozenset((0x81, 0x83, 0x86, 0x87, 0x88, 0x89, 0x8D, 0x8F, 0x90, 0x98, 0x9D))
_RESTORE = "save the file as UTF-8 anew, or fetch it again"
# What UTF-16's halves are in bytes where each was encoded by itself, as Java and some databases do (CESU-8).
_SURROGATE = re.compile(b"\xed[\xa0-\xbf][\x80-\xbf]")
# A character that lacks at least its last byte.
_BEGUN = re.compile(
    b"[\xc2-\xdf]|\xe0[\xa0-\xbf]?|[\xe1-\xec\xee\xef][\x80-\xbf]?|\xed[\x80-\x9f]?|"
    b"\xf0(?:[\x90-\xbf][\x80-\xbf]?)?|[\xf1-\xf3](?:[\x80-\xbf]{1,2})?|\xf4(?:[\x80-\x8f][\x80-\xbf]?)?"
)


def likely_encoding(lines: Iterable[str]) -> str | None:
    """What lines that are not UTF-8 are in, if they are of Western Europe: `latin-1` or `cp1252`; None: neither.

    lines: decoded with surrogateescape.
    """
    found = {ord(character) - 0xDC00 for line in lines for character in line if "\udc80" <= character <= "\udcff"}
    if found & _NOT_OF_WINDOWS:
        return None
    # Control characters in Latin-1; quotes, dashes and the sign of the euro in what Windows has.
    return "cp1252" if min(found, default=0xFF) < 0xA0 else "latin-1"


def describe_damage(
    line: str, start: int, is_last: bool, has_utf8: bool, others: int = 0, encoding: str | None = "latin-1"
) -> str:
    """What is wrong from a place of a line on, with the remedy.

    line: decoded with surrogateescape. start: of its first character that stands for a byte. is_last: the file ends
    with this line. has_utf8: elsewhere in the file there are characters beyond ASCII, in UTF-8. others: how many
    more lines are not UTF-8. encoding: see `likely_encoding`.
    """
    rest = line[start:].encode("utf-8", "surrogateescape")
    place = f"at column {start + 1}"
    more = f", and {others:,} more lines are not" if others else ""
    recode = "" if has_utf8 or encoding is None else _RECODE[encoding]
    if _SURROGATE.match(rest):
        return (
            f"the bytes {_hex(rest[:3])} {place} are half of a UTF-16 pair, which is no character of UTF-8{more}; "
            f"{_RESTORE}"
        )
    begun = _BEGUN.match(rest)
    if begun is not None and begun.end() == len(rest) and is_last:
        told = f"the file ends inside a character: {_hex(rest)} {place} lacks what should follow"
        return f"{told}{more}; it was cut off, fetch it whole{recode}"
    wrong = f"byte 0x{rest[0]:02X} {place} is not UTF-8{more}"
    if has_utf8:
        return f"{wrong}, as the rest of the file is: it is damaged there; {_RESTORE}"
    return f"{wrong}; save the file as UTF-8{recode}"


def _hex(content: bytes) -> str:
    return " ".join(f"0x{byte:02X}" for byte in content)
