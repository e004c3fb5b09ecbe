"""What `config.json` and the files beside it may say, before any library believes them."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
                check_sizes(tree, path, remedy)


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


def check_layers(config: Any, names: list[str], place: Path) -> None:
    """Raises a `UserError` where a config has more layers than its weights have tensors."""
    for part in ("vision_config", "qformer_config", "text_config"):
        layers = getattr(config, part).num_hidden_layers
        if layers > len(names):
            raise UserError(
                f"{shown(place)}: {part}.num_hidden_layers = {layers:,}: the weights have {len(names):,} tensors in "
                "all; put the config there that belongs to them"
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
