"""What `config.json` and the files beside it may say, before any library believes them."""

import difflib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from artkv.errors import UserError
from artkv.models.files.foreign_files import check_regular, read_object, shown

# Beyond any model there is, and not too large to be built without weights, which takes milliseconds a layer.
_MOST = {
    "num_hidden_layers": 1_000, "num_attention_heads": 10_000, "num_query_tokens": 100_000, "image_size": 100_000,
    "patch_size": 100_000, "cross_attention_frequency": 10_000, "hidden_size": 1_000_000, "ffn_dim": 10_000_000,
    "intermediate_size": 10_000_000, "encoder_hidden_size": 1_000_000, "word_embed_proj_dim": 1_000_000,
    "vocab_size": 100_000_000, "max_position_embeddings": 10_000_000,
}  # fmt: skip
_EPS = ("layer_norm_eps", "post_layernorm_eps")
_PROBABILITIES = (
    "dropout", "attention_dropout", "activation_dropout", "layerdrop", "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)  # fmt: skip
_OBJECTS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "generation_config.json", "chat_template.json",
)  # fmt: skip
_READ = (*_OBJECTS, "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")
_CODE = "auto_map"
_PARTS = ("vision_config", "qformer_config", "text_config")
_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


def check_settings_files(folder: Path, setting: str) -> None:
    """Raises a `UserError` where one of a model folder's settings is no file, no JSON object, or asks for code.

    setting: what named the folder.
    """
    for name in _READ:
        path = folder / name
        if not os.path.lexists(path):
            continue
        remedy = "put the model's own there"
        check_regular(path, path, remedy)
        if name in _OBJECTS:
            tree = read_object(path, remedy)
            if _CODE in tree:
                raise UserError(
                    f"{shown(path)}: {_CODE} wants code of its own to be run, which artkv never does; {setting} must "
                    "be a model of transformers itself, such as Salesforce/blip2-opt-2.7b"
                )
            if name == "config.json":
                _check_parts(tree, path, remedy)
                check_sizes(tree, path, remedy)
                check_is_plain(tree, path)
                check_tokens(tree, path, remedy)


def check_tokenizer_files(folder: Path, remedy: str) -> None:
    """Raises a `UserError` for a tokenizer's files that lack what its library tells by one word, or not at all."""
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        if not os.path.lexists(folder / "merges.txt"):
            raise UserError(f"{shown(folder)}: has vocab.json without merges.txt, which belongs to it; {remedy}")
        return
    tree = read_object(path, remedy)
    model = tree.get("model")
    lacking = [
        *(name for name, kind in (("added_tokens", list), ("model", dict)) if not isinstance(tree.get(name), kind)),
        *(["model.vocab"] if isinstance(model, dict) and not isinstance(model.get("vocab"), dict | list) else []),
    ]
    if lacking:
        raise UserError(f"{shown(path)}: lacks {' and '.join(lacking)}, which a tokenizer.json has; {remedy}")


def check_sizes(tree: dict[str, Any], path: Path, remedy: str) -> None:
    """Raises a `UserError` for a size that is no whole number, or beyond any model, and for an eps or a dropout that is
    none.

    Whoever builds a model asks for memory, or counts to a billion, before weights and sizes are compared.
    """
    for name, value in _leaves(tree):
        last = name.rsplit(".", 1)[-1]
        if last in _MOST and (type(value) is not int or not 0 < value <= _MOST[last]):
            wrong = f"must be a whole number from 1 to {_MOST[last]:,}"
        elif last in _EPS and (type(value) not in (int, float) or not 0 < value < 1 or not math.isfinite(value)):
            wrong = "must be a number between 0 and 1"
        elif last in _PROBABILITIES and (type(value) not in (int, float) or not 0 <= value <= 1):
            wrong = "must be a number from 0 to 1"
        else:
            continue
        raise UserError(f"{shown(path)}: {shown(name)} = {value!r:.80}: {wrong}; {remedy}")


def check_is_plain(tree: dict[str, Any], path: Path) -> None:
    """Raises a `UserError` where weights are to be read otherwise than they stand in their files, or not OPT's way.

    transformers reads those keys where it loads weights itself; artkv, which loads them tensor by tensor, does not.
    """
    for prefix, part in {"": tree, **{f"{name}.": tree.get(name) for name in _PARTS}}.items():
        if not isinstance(part, dict):
            continue
        if part.get("quantization_config") is not None:
            raise UserError(
                f"{shown(path)}: {prefix}quantization_config = {part['quantization_config']!r:.80}: its weights are "
                "quantised, and artkv reads plain ones; give the model as it was published, and quantise it with "
                "frozen.opt: int8 or nf4"
            )
        for name in ("dtype", "torch_dtype"):
            value = part.get(name)
            if value is not None and (not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES):
                raise UserError(
                    f"{shown(path)}: {prefix}{name} = {value!r:.80}: must be one of {', '.join(_DTYPES)}; put the "
                    "model's own there, or leave it out (model.dtype settles in what artkv computes)"
                )
    if tree.get("use_decoder_only_language_model", True) is not True:
        raise UserError(
            f"{shown(path)}: use_decoder_only_language_model = {tree['use_decoder_only_language_model']!r:.80}: must "
            "be true, for artkv reads BLIP-2 with OPT; put the model's own there"
        )


def check_layers(config: Any, names: list[str], place: Path) -> None:
    """Raises a `UserError` where a config has more layers than its weights have tensors."""
    for part in _PARTS:
        layers = getattr(config, part).num_hidden_layers
        if layers > len(names):
            raise UserError(
                f"{shown(place)}: {part}.num_hidden_layers = {layers:,}: the weights have {len(names):,} tensors in "
                "all; put the config there that belongs to them"
            )


def _check_parts(tree: dict[str, Any], path: Path, remedy: str) -> None:
    """Raises a `UserError` where BLIP-2's config lacks a part, which transformers fills with another model's sizes."""
    if tree.get("model_type") != "blip-2":
        return
    lacking = [name for name in _PARTS if not isinstance(tree.get(name), dict)]
    if lacking:
        raise UserError(f"{shown(path)}: has no object for {', '.join(lacking)}; {remedy}")


def check_agreement(config: Any, place: object, written: dict[str, Any] | None = None) -> None:
    """Raises a `UserError` where two parts of a config cannot be of one model.

    The weights may have been made by such a config: that their shapes are its own says nothing.

    written: the config as its file has it, where transformers has made two sizes one.
    """
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    width, text_width = qformer.encoder_hidden_size, text.word_embed_proj_dim
    part = (written or {}).get("qformer_config")
    if isinstance(part, dict):
        width = part.get("encoder_hidden_size", width)
    pairs = [
        ("qformer_config.encoder_hidden_size", width, "vision_config.hidden_size", vision.hidden_size),
        ("text_config.word_embed_proj_dim", text_width, "text_config.hidden_size", text.hidden_size),
    ]
    remedy = "put the config there that belongs to its weights"
    for name, value, other, expected in pairs:
        if value != expected:
            raise UserError(f"{shown(place)}: {name} = {value:,}: must be {other}, which is {expected:,}; {remedy}")
    for name, part in zip(_PARTS, (vision, qformer, text), strict=True):
        heads = part.num_attention_heads
        if part.hidden_size % heads:
            raise UserError(
                f"{shown(place)}: {name}.num_attention_heads = {heads:,}: must divide {name}.hidden_size, which is "
                f"{part.hidden_size:,}; {remedy}"
            )
        key = "activation_function" if part is text else "hidden_act"
        function = getattr(part, key)
        if not isinstance(function, str) or function not in ACT2FN:
            near = difflib.get_close_matches(str(function), ACT2FN, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"{shown(place)}: {name}.{key} = {function!r:.80}: is no activation that transformers has, such as "
                f"'gelu' or 'relu'; {meant}{remedy}"
            )
    if vision.patch_size > vision.image_size:
        raise UserError(
            f"{shown(place)}: vision_config.patch_size = {vision.patch_size:,}: is more than vision_config.image_size, "
            f"which is {vision.image_size:,}; {remedy}"
        )
    positions = text.max_position_embeddings
    if config.num_query_tokens >= positions:
        raise UserError(
            f"{shown(place)}: text_config.max_position_embeddings = {positions:,}: leaves no room for a question "
            f"beside num_query_tokens, which is {config.num_query_tokens:,}; {remedy}"
        )


def check_tokens(tree: dict[str, Any], path: Path, remedy: str) -> None:
    """Raises a `UserError` for a token that a config names, such as `eos_token_id`, and its vocabulary has not."""
    text = tree.get("text_config", tree)
    parts = {"": (tree, text), "text_config.": (text, text)}
    parts["qformer_config."] = (tree.get("qformer_config"), tree.get("qformer_config"))
    for prefix, (part, owner) in parts.items():
        size = owner.get("vocab_size") if isinstance(owner, dict) else None
        if not isinstance(part, dict) or type(size) is not int:
            continue
        for name, value in part.items():
            values = value if isinstance(value, list) else [value]
            is_token = name.endswith(("_token_id", "_token_index"))
            if is_token and not all(one is None or (type(one) is int and 0 <= one < size) for one in values):
                raise UserError(
                    f"{shown(path)}: {prefix}{name} = {value!r:.80}: must be a token of the vocabulary, a whole number "
                    f"from 0 to {size - 1:,}; {remedy}"
                )


def _leaves(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each value that is no object, with its dotted name. Without recursion: objects may nest to Python's limit."""
    objects = [("", tree)]
    while objects:
        prefix, found = objects.pop()
        for key, value in found.items():
            if isinstance(value, dict):
                objects.append((f"{prefix}{key}.", value))
            else:
                yield f"{prefix}{key}", value
