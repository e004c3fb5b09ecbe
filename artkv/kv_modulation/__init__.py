"""Ways of injecting art features into BLIP-2, and the cross-attention that takes what they hand down."""

from artkv.kv_modulation.attention import PrefixedCrossAttention
from artkv.kv_modulation.generator import KVPrefixGenerator
from artkv.kv_modulation.injection import GATE, Injection, ModelSizes, Use
from artkv.kv_modulation.injections import INJECTIONS, KVPrefix, make_injection
from artkv.kv_modulation.installation import install_prefixed_cross_attention
from artkv.kv_modulation.modulation import STOCK, LayerAttention, Modulation
from artkv.kv_modulation.recording import recorded_attention
from artkv.kv_modulation.sources import ArtSource

__all__ = [
    "GATE",
    "INJECTIONS",
    "STOCK",
    "ArtSource",
    "Injection",
    "KVPrefix",
    "KVPrefixGenerator",
    "LayerAttention",
    "ModelSizes",
    "Modulation",
    "PrefixedCrossAttention",
    "Use",
    "install_prefixed_cross_attention",
    "make_injection",
    "recorded_attention",
]
