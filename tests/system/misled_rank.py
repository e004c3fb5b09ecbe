"""`artkv` with a wrong `model.blip2` on rank 1 alone; test_launchers.py starts it through torchrun."""

import os
import sys

from artkv.cli import main

if __name__ == "__main__":
    wrong = ["--set", "model.blip2=./nowhere"] if os.environ["RANK"] == "1" else []
    sys.exit(main([*sys.argv[1:], *wrong]))
