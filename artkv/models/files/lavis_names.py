"""Parameter names of LAVIS's `Blip2OPT` and of transformers' `Blip2ForConditionalGeneration`, both ways.

artkv's backend-neutral names are transformers'. The two differ in names alone but for one tensor: transformers
keeps the bias of the ViT's fused query/key/value projection whole, LAVIS its query and value part, the key part
being zero (EVA trains none: it would shift all scores of a query alike). No LAVIS is needed here.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from artkv.errors import UserError
from artkv.models.files.weight_files import TensorSource

# (transformers, LAVIS): beginnings of names, of which the first that fits counts. `#` stands for a layer's number.
_RENAMED = [
    ("query_tokens", "query_tokens"),
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_model.encoder.layers.#.layer_norm1.", "visual_encoder.blocks.#.norm1."),
    ("vision_model.encoder.layers.#.layer_norm2.", "visual_encoder.blocks.#.norm2."),
    ("vision_model.encoder.layers.#.self_attn.qkv.weight", "visual_encoder.blocks.#.attn.qkv.weight"),
    ("vision_model.encoder.layers.#.self_attn.projection.", "visual_encoder.blocks.#.attn.proj."),
    ("vision_model.encoder.layers.#.mlp.", "visual_encoder.blocks.#.mlp."),
    ("vision_model.post_layernorm.", "ln_vision."),
    ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("qformer.encoder.layer.#.attention.attention.", "Qformer.bert.encoder.layer.#.attention.self."),
    ("qformer.encoder.layer.#.attention.output.", "Qformer.bert.encoder.layer.#.attention.output."),
    ("qformer.encoder.layer.#.crossattention.attention.", "Qformer.bert.encoder.layer.#.crossattention.self."),
    ("qformer.encoder.layer.#.crossattention.output.", "Qformer.bert.encoder.layer.#.crossattention.output."),
    ("qformer.encoder.layer.#.intermediate_query.", "Qformer.bert.encoder.layer.#.intermediate_query."),
    ("qformer.encoder.layer.#.output_query.", "Qformer.bert.encoder.layer.#.output_query."),
    ("language_projection.", "opt_proj."),
    ("language_model.", "opt_model."),
]

_QKV_BIAS = "vision_model.encoder.layers.#.self_attn.qkv.bias"
_Q_BIAS = "visual_encoder.blocks.#.attn.q_bias"
_V_BIAS = "visual_encoder.blocks.#.attn.v_bias"

# What BLIP-2 with OPT does not use: the Q-Former's text branch and its buffer of position numbers.
UNUSED = [
    "Qformer.bert.embeddings.position_ids",
    "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.bert.embeddings.position_embeddings.weight",
    "Qformer.bert.encoder.layer.#.intermediate.dense.*",
    "Qformer.bert.encoder.layer.#.output.dense.*",
    "Qformer.bert.encoder.layer.#.output.LayerNorm.*",
    "Qformer.cls.*",
]

# What `eva_vit_g.pth` holds beside the blocks that LAVIS builds, without LAVIS's `visual_encoder.` in front.
UNUSED_OF_VIT = ["norm.*", "fc_norm.*", "head.*", "mask_token"]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", "(?P<layer>[0-9]+)").replace(r"\*", ".+"))


def _renaming(pairs: list[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(old), new.replace("#", r"\g<layer>")) for old, new in pairs]


_TO_LAVIS = _renaming(_RENAMED)
_FROM_LAVIS = _renaming([(new, old) for old, new in _RENAMED])
_SPLIT = [(_pattern(_QKV_BIAS), _Q_BIAS, _V_BIAS)]
_JOINED = _renaming([(_Q_BIAS, _QKV_BIAS), (_V_BIAS, _QKV_BIAS)])
_UNUSED = [_pattern(name) for name in UNUSED]
_UNUSED_OF_VIT = [_pattern(name) for name in UNUSED_OF_VIT]


def to_lavis(name: str) -> list[str]:
    """LAVIS's name of a tensor of transformers': one, or those of the query and the value bias of a `qkv.bias`."""
    for pattern, *parts in _SPLIT:
        if match := pattern.fullmatch(name):
            return [part.replace("#", match["layer"]) for part in parts]
    for pattern, new in _TO_LAVIS:
        if match := pattern.match(name):
            return [match.expand(new) + name[match.end() :]]
    raise KeyError(name)


def from_lavis(name: str) -> str | None:
    """transformers' name of a tensor of LAVIS's, None for a name that is not known.

    Query and value bias of a block give the same name; see `join_qkv_bias`. Names in `UNUSED` are not known.
    """
    for pattern, new in _JOINED:
        if match := pattern.fullmatch(name):
            return match.expand(new)
    for pattern, new in _FROM_LAVIS:
        if match := pattern.match(name):
            return match.expand(new) + name[match.end() :]
    return None


def is_unused(name: str) -> bool:
    """Whether a tensor of a LAVIS file is known, and has no part in BLIP-2 with OPT."""
    return any(pattern.fullmatch(name) for pattern in _UNUSED)


def is_unused_of_vit(name: str) -> bool:
    """The same for `eva_vit_g.pth`, blocks apart."""
    return any(pattern.fullmatch(name) for pattern in _UNUSED_OF_VIT)


def join_qkv_bias(q_bias: Tensor, v_bias: Tensor) -> Tensor:
    """The bias of the fused projection, (3V): query's, zeros for the key's, value's; each (V)."""
    return torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])


def split_qkv_bias(name: str, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Query's and value's part, each (V), of a fused bias (3V).

    Raises:
        UserError: if the key's part is not zero, which LAVIS cannot express; `name` is whose it is.
    """
    q_bias, k_bias, v_bias = bias.chunk(3)
    if k_bias.count_nonzero():
        raise UserError(
            f"{name}: its key part is not zero, and LAVIS's ViT has no key bias; this model cannot be a LAVIS one"
        )
    return q_bias, v_bias


class LavisNamed:
    """A `TensorSource` of transformers' names seen under LAVIS's, tensor by tensor.

    With it, LAVIS's own modules are filled and LAVIS's files written from any BLIP-2 that artkv reads.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._original = {lavis: name for name in source.names() for lavis in to_lavis(name)}

    def names(self) -> list[str]:
        """All names, LAVIS's."""
        return list(self._original)

    def tensor(self, name: str) -> Tensor:
        """The tensor of LAVIS's name; see `split_qkv_bias` for what it raises."""
        original = self._original[name]
        tensor = self._source.tensor(original)
        if name.endswith((".q_bias", ".v_bias")):
            return split_qkv_bias(original, tensor)[name.endswith(".v_bias")]
        return tensor

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one after the other."""
        return ((name, self.tensor(name)) for name in self._original)
