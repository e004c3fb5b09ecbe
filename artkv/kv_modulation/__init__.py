"""Key/value prefixes from art features, and the cross-attention that takes them."""

from artkv.kv_modulation.attention import KVPrefix, PrefixedCrossAttention
from artkv.kv_modulation.generator import KVPrefixGenerator
from artkv.kv_modulation.installation import install_prefixed_cross_attention
from artkv.kv_modulation.recording import LayerAttention, recorded_attention

__all__ = [
    "KVPrefix",
    "KVPrefixGenerator",
    "LayerAttention",
    "PrefixedCrossAttention",
    "install_prefixed_cross_attention",
    "recorded_attention",
]
