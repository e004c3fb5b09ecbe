"""artkv trains BLIP-2 to answer questions about paintings, with key/value prefixes from an art encoder.

from artkv import load_model
model = load_model(checkpoint="outputs/demo/best")
print(model.ask("painting.jpg", "Which style is this?"))
"""

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artkv.api import evaluate, load_model
    from artkv.config import load_config
    from artkv.kv_modulation import KVPrefixGenerator

__version__ = "0.1.0"
__all__ = ["KVPrefixGenerator", "__version__", "evaluate", "load_config", "load_model"]

# Threads that wait for one another sleep instead of spinning: beside other processes on the same cores a training step
# took a tenth of the time (docs/throughput.md). OpenMP reads it when torch loads it, so this comes before torch, and in
# each rank too. Whoever has chosen is left alone.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

# Imported when first asked for: torch and transformers take seconds that `artkv --help` need not wait.
_HOMES = {
    "KVPrefixGenerator": "artkv.kv_modulation",
    "evaluate": "artkv.api",
    "load_config": "artkv.config",
    "load_model": "artkv.api",
}

# peft imports bitsandbytes wherever it is installed, which warns on CPUs with AVX512-BF16 that the package `kernels` is
# missing, from which it would take one 4-bit product. It has another of its own.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "from kernels-community" not in str(record.msg)
)
# Of each product in int8, in each pass, that its inputs are in bfloat16, as all here are.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(
    lambda record: "inputs will be cast" not in str(record.msg)
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'artkv' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
