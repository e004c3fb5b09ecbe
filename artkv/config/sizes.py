"""Sizes of memory as people write them."""

import re
from decimal import Decimal

_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
# An exbibyte: more than any machine has, and what every library can still count in.
_MOST_BYTES = 2**60


def parse_size(text: str) -> int:
    """Bytes of a size such as 8GiB (2^30 bytes each), 24GB (10^9) or 512 MiB; raises ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([KMGT]?i?B)\s*", text)
    num_bytes = 0 if match is None or match[2] not in _UNITS else int(Decimal(match[1]) * _UNITS[match[2]])
    if not 0 < num_bytes <= _MOST_BYTES:
        raise ValueError(f"{text!r:.80} is no size of memory; give one such as 8GiB (2^30 bytes) or 24GB (10^9)")
    return num_bytes
