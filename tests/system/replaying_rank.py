"""`artkv` that replays on rank 1 alone, as where a shape was seen often there and is new to the others."""

import os
from collections.abc import Sequence

import artkv.models.kv_modulated_blip2 as model_module
from artkv.cli import main
from tests.models.test_cuda_graphs import Rerun

REPLAYED = "replays of rank 1: "


def replaying(arguments: Sequence[str]) -> int:
    """Prints how often, behind `REPLAYED`."""
    recorders: list[Rerun] = []

    def recorder() -> Rerun:
        recorders.append(Rerun())
        return recorders[-1]

    if os.environ["RANK"] == "1":
        model_module.graphs_are_wanted = lambda device: True
        model_module.CudaRecorder = recorder
    code = main(arguments)
    if recorders:
        print(REPLAYED + " ".join(str(one.replays) for one in recorders), flush=True)
    return code
