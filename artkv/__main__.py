"""`python -m artkv`, and what launchers start with `--module artkv`."""

import sys

from artkv.cli import main

if __name__ == "__main__":
    sys.exit(main())
