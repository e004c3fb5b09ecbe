"""`artkv cache` with shards of two records, and slow to write them, so that it can be killed between two."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import artkv.datasets.member_index as member_index
import artkv.feature_cache.filling as filling
from artkv.cli import main


def slow_cache(arguments: Sequence[str]) -> int:
    """Takes WRITING_SECONDS, of the environment, after each shard."""
    write_shard = filling.write_shard

    def write_slowly(*given: Any) -> None:
        write_shard(*given)
        time.sleep(float(os.environ.get("WRITING_SECONDS", "0")))

    filling.RECORDS_A_SHARD = 2
    member_index.SETTLED_SECONDS = 0.0
    filling.write_shard = write_slowly
    return main(arguments)


if __name__ == "__main__":
    sys.exit(slow_cache(sys.argv[1:]))
