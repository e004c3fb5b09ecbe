"""Prints one setting of a config, for scripts: python -m artkv.config CONFIG SECTION.KEY [--set ...]."""

import sys
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

from artkv.config.loading import load_config
from artkv.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Prints the setting; 1 and a message where there is none. Words that are no --set are another program's."""
    if len(arguments) < 2:
        print("usage: python -m artkv.config CONFIG SECTION.KEY [--set SECTION.KEY=VALUE ...]", file=sys.stderr)
        return 2
    path, key, *rest = arguments
    overrides = [word.removeprefix("--set=") for word in rest if word.startswith("--set=")]
    overrides += [value for word, value in pairwise(rest) if word == "--set"]
    try:
        print(reduce(getattr, key.split("."), load_config(path, overrides)))
    except UserError as error:
        print(f"artkv: {error!s}".encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        return 1
    except AttributeError:
        print(f"artkv: {key}: is no setting; see artkv/config/recipes/artquest.yaml", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
