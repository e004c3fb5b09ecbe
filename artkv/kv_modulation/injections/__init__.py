"""The ways of injecting art features into BLIP-2, by the name that `kv_modulation.injection` has for each."""

from collections.abc import Sequence

from artkv.config import KVModulationConfig
from artkv.kv_modulation.injection import Injection, ModelSizes
from artkv.kv_modulation.injections.concat import Concat, KVPrefix
from artkv.kv_modulation.injections.decoupled import Decoupled
from artkv.kv_modulation.injections.film import Film
from artkv.kv_modulation.injections.prompt import Prompt
from artkv.kv_modulation.sources import ArtSource

__all__ = ["INJECTIONS", "KVPrefix", "make_injection"]

INJECTIONS: dict[str, type[Injection]] = {
    "concat": Concat,
    "decoupled": Decoupled,
    "film": Film,
    "prompt": Prompt,
}


def make_injection(settings: KVModulationConfig, sources: Sequence[ArtSource], sizes: ModelSizes) -> Injection:
    """The injection that `settings` name, freshly drawn."""
    return INJECTIONS[settings.injection](settings, sources, sizes)
