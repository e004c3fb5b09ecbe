"""`artkv` with a wrong `model.blip2` on rank 1 alone."""

import os
from collections.abc import Sequence

from artkv.cli import main


def misled(arguments: Sequence[str]) -> int:
    wrong = ["--set", "model.blip2=./nowhere"] if os.environ["RANK"] == "1" else []
    return main([*arguments, *wrong])
