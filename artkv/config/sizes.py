"""Sizes of memory as people write them."""

import re

_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def parse_size(text: str) -> int:
    """Bytes of a size such as 8GiB (2^30 bytes each), 24GB (10^9) or 512 MiB; raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"{text!r} is no size of memory; give one such as 8GiB (2^30 bytes) or 24GB (10^9)")
    return int(float(match[1]) * _UNITS[match[2]])
