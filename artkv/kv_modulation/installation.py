"""Puts prefixed cross-attention into a Q-Former."""

from collections.abc import Sequence

from torch import nn

from artkv.kv_modulation.attention import PrefixedCrossAttention


def install_prefixed_cross_attention(
    blocks: Sequence[nn.Module],
    attribute: str,
    num_heads: int,
    expected_count: int,
    attention: type[PrefixedCrossAttention] = PrefixedCrossAttention,
) -> list[PrefixedCrossAttention]:
    """Replaces `block.<attribute>` of every cross-attention block by a prefixed one; returns these.

    Args:
        blocks: the Q-Former's cross-attention blocks in the order of its layers.
        attribute: where a block keeps its stock attention: `attention` in transformers' Q-Former, `self` in LAVIS's.
        num_heads: attention heads.
        expected_count: how many layers have cross-attention by the model's config.
        attention: what to put there; a subclass where the blocks call their attention in another way.

    Raises:
        ValueError: if the count differs, or a block's stock attention lacks query, key or value.
    """
    if len(blocks) != expected_count:
        raise ValueError(
            f"the Q-Former has {len(blocks)} cross-attention layers but its config says {expected_count}; "
            "the prefix would miss some"
        )
    installed = []
    for layer_index, block in enumerate(blocks):
        stock = getattr(block, attribute)
        lacking = [name for name in ("query", "key", "value") if not hasattr(stock, name)]
        if lacking:
            raise ValueError(f"cross-attention layer {layer_index}: {type(stock).__name__} has no {lacking}")
        prefixed = attention(stock.query, stock.key, stock.value, num_heads, layer_index)
        setattr(block, attribute, prefixed.train(stock.training))
        installed.append(prefixed)
    return installed
