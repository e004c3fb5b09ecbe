"""artkv trains BLIP-2 to answer questions about paintings, with key/value prefixes from an art encoder.

from artkv import load_config, load_model
model = load_model(load_config("my.yaml"), checkpoint="outputs/demo/checkpoints/latest")
print(model.ask("painting.jpg", "Which style is this?"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artkv.api import load_model
    from artkv.config import load_config
    from artkv.kv_modulation import KVPrefixGenerator

__version__ = "0.1.0"
__all__ = ["KVPrefixGenerator", "__version__", "load_config", "load_model"]

# Imported when first asked for: torch and transformers take seconds that `artkv --help` need not wait.
_HOMES = {
    "KVPrefixGenerator": "artkv.kv_modulation",
    "load_config": "artkv.config",
    "load_model": "artkv.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'artkv' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
