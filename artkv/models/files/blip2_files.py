"""Opens BLIP-2 as it is published: a transformers folder or hub id, or a LAVIS `.pth`. All backends load from it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessor

from artkv.config import ModelConfig
from artkv.datasets.tokenization import newline_token_id
from artkv.errors import UserError
from artkv.models.files.lavis_files import IMAGE_MEAN, IMAGE_STD, LN_VISION_EPS, LavisSource, lavis_config
from artkv.models.files.weight_files import TensorSource, digests, open_weights

BLIP2_OPT_2_7B = "Salesforce/blip2-opt-2.7b"

# Tied to the token embedding: a file may hold it or leave it out, and it is never read.
TIED = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.decoder.embed_tokens.weight"

# Of the vision config: eps of the LayerNorm after the ViT's blocks, LAVIS's ln_vision, where it is not the blocks'.
# transformers ignores it.
LN_VISION_EPS_KEY = "post_layernorm_eps"

_SETTINGS = ["*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class ImageSettings:
    """How the ViT wants its pictures: side in pixels, mean and std of the three channels."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class WeightSource(TensorSource, Protocol):
    """A `TensorSource` that knows its files."""

    files: list[Path]


@dataclass(frozen=True)
class Blip2Files:
    """Everything but the weights' values, which are read tensor by tensor.

    config: transformers'; its vision config says `post_layernorm_eps` where ln_vision's differs from the blocks'.
    source: tensors by transformers' names, in the files' dtypes; the tied head may be among them.
    """

    config: Any
    tokenizer: Any
    image_settings: ImageSettings
    source: WeightSource

    @property
    def ln_vision_eps(self) -> float:
        """eps of the LayerNorm after the ViT's blocks: 1e-5 in LAVIS, the blocks' own (1e-6) in transformers."""
        vision = self.config.vision_config
        return getattr(vision, LN_VISION_EPS_KEY, vision.layer_norm_eps)

    def names(self) -> list[str]:
        """Names of all tensors but the tied head."""
        return [name for name in self.source.names() if name != TIED]

    def weight_digests(self) -> dict[str, str]:
        """`Blip2Backbone.weight_digests` of these files."""

        def read() -> Iterator[tuple[str, Tensor]]:
            return ((name, self.source.tensor(name)) for name in self.names())

        return digests(read(), self.source.files) | settings_digests(self)


def settings_digests(files: Blip2Files) -> dict[str, str]:
    """Digests of what gives the weights their meaning and leaves no trace in their shapes.

    ln_vision's eps is none of it: between 1e-5 and 1e-6 the output of a ViT of unit variance moves by 5e-6 of
    itself, and the weights' digests are blind to anything below bfloat16's rounding, 4e-3, on purpose. The token
    `<image>` is none either: transformers' processor adds it to OPT's tokenizer, and artkv's texts never hold it.
    """
    config = files.config
    parts = (config.vision_config, config.qformer_config, config.text_config)
    image = files.image_settings
    meaning = {
        "tokenizer": sorted(item for item in files.tokenizer.get_vocab().items() if item[0] != "<image>"),
        "images": [image.size, *image.mean, *image.std],
        "heads": [part.num_attention_heads for part in parts],
        "activations": [
            config.vision_config.hidden_act,
            config.qformer_config.hidden_act,
            config.text_config.activation_function,
        ],
    }
    return {
        f"settings.{name}": hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in meaning.items()
    }


def open_blip2(model: ModelConfig) -> Blip2Files:
    """Opens what `model.blip2`, and for a LAVIS `.pth` `model.opt` and `model.vit`, name.

    All that can be wrong with the files is found here, in a second or two: every tensor's name and shape is compared.

    Raises:
        UserError: if a file is missing or superfluous, a tensor missing, unexpected or of another shape.
    """
    files = _open_lavis(model) if model.is_lavis_file else _open_folder(model.blip2)
    _check_weights(files, model.blip2)
    newline_token_id(files.tokenizer)
    return files


def stock_blip2(config: Any) -> Any:
    """transformers' `Blip2ForConditionalGeneration` on the meta device: no time and no memory for random weights."""
    with torch.device("meta"):
        return Blip2ForConditionalGeneration(config)


def tokenizer_folder_files(files: Blip2Files) -> list[Path]:
    """The files beside config and weights of the transformers folder that was opened; none for LAVIS's files."""
    if isinstance(files.source, LavisSource):
        return []
    folder = files.source.files[0].parent
    found = {path for pattern in _SETTINGS for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != "config.json" and not path.name.endswith(".index.json"))


def read_lavis_config(model: ModelConfig) -> Any:
    """The config of the LAVIS `.pth` in `model.blip2`."""
    return _lavis_source(model)[1]


def _open_folder(blip2: str) -> Blip2Files:
    folder = _local_folder(blip2, "model.blip2")
    config = read_folder_config(folder, blip2)
    source = open_weights(folder, "model.blip2")
    return Blip2Files(
        config, _load_tokenizer(folder, config), _image_settings(folder, config.vision_config.image_size), source
    )


def _open_lavis(model: ModelConfig) -> Blip2Files:
    source, config, opt = _lavis_source(model)
    image = source.settings.get("images", {})
    settings = ImageSettings(
        config.vision_config.image_size, tuple(image.get("mean", IMAGE_MEAN)), tuple(image.get("std", IMAGE_STD))
    )
    return Blip2Files(config, _load_tokenizer(opt, config), settings, source)


def _lavis_source(model: ModelConfig) -> tuple[LavisSource, Any, Path]:
    """The weights, their config, and the local folder of OPT."""
    path = Path(model.blip2).expanduser()
    if not path.is_file():
        raise UserError(f"model.blip2 = {model.blip2!r}: no such file; give a LAVIS .pth, a folder or a hub id")
    if model.opt is None:
        raise UserError(
            f"model.opt is not set, and the LAVIS file {path} holds neither OPT nor its tokenizer; "
            "give facebook/opt-2.7b or its folder"
        )
    opt = _local_folder(model.opt, "model.opt")
    if not (opt / "config.json").is_file():
        raise UserError(f"model.opt = {model.opt!r}: {opt} has no config.json; give OPT's folder as it is published")
    text_config: Any = AutoConfig.from_pretrained(opt, trust_remote_code=False)
    if text_config.model_type == "blip-2":
        text_config = text_config.text_config
    if text_config.model_type != "opt":
        raise UserError(f"model.opt = {model.opt!r}: is {text_config.model_type}, expected opt as facebook/opt-2.7b")
    source = LavisSource(path, None if model.vit is None else model.vit.expanduser(), opt)
    config: Any = lavis_config(source, text_config)
    config._attn_implementation = "sdpa"
    if not hasattr(config.vision_config, LN_VISION_EPS_KEY):
        setattr(config.vision_config, LN_VISION_EPS_KEY, LN_VISION_EPS)
    return source, config, opt


def _local_folder(name: str, setting: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    looks_like_hub_id = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise UserError(f"{setting} = {name!r}: no such folder; give a hub id or an existing folder")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_SETTINGS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # a repository may hold the weights in both formats
            folder = Path(snapshot_download(name, allow_patterns=[*_SETTINGS, "*.bin"]))
        return folder
    except Exception as error:
        raise UserError(
            f"{setting} = {name!r}: neither a folder nor to be had from the hub "
            f"({type(error).__name__}: {error}); download it and give its folder"
        ) from None


def read_folder_config(folder: Path, blip2: str) -> Any:
    """The config in BLIP-2's folder, which `model.blip2` names as `blip2`."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model.blip2 = {blip2!r}: {folder} has no config.json; give a folder of save_pretrained")
    try:
        config: Any = Blip2Config.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"model.blip2 = {blip2!r}: {folder}/config.json cannot be read ({error}); put BLIP-2's there"
        ) from None
    if config.model_type != "blip-2" or config.text_config.model_type != "opt":
        raise UserError(
            f"model.blip2 = {blip2!r}: is {config.model_type} with {config.text_config.model_type}, expected blip-2 "
            f"with opt, such as {BLIP2_OPT_2_7B}"
        )
    config._attn_implementation = "sdpa"
    return config


def _check_weights(files: Blip2Files, blip2: str) -> None:
    source = files.source
    is_lavis = isinstance(source, LavisSource)
    shown = source.shown if isinstance(source, LavisSource) else str
    said_by = "their files" if is_lavis else "config.json"
    expected = {n: tuple(t.shape) for n, t in stock_blip2(files.config).state_dict().items() if n != TIED}
    found = set(files.names())
    problems = []
    if missing := sorted(expected.keys() - found):
        problems.append(f"{len(missing)} missing: {', '.join(map(shown, missing[:5]))}")
    if unexpected := sorted(found - expected.keys()):
        problems.append(f"{len(unexpected)} unexpected: {', '.join(map(shown, unexpected[:5]))}")
    for name in sorted(found & expected.keys()):
        shape = tuple(source.tensor(name).shape)
        if shape != expected[name]:
            problems.append(f"{shown(name)} has shape {shape}, {said_by} says {expected[name]}")
    if problems:
        remedy = (
            "give a .pth of LAVIS's Blip2OPT with the eva_vit_g.pth and the OPT that it was trained with"
            if is_lavis
            else "give the folder of one BLIP-2 OPT model as save_pretrained wrote it"
        )
        where = ", ".join(map(str, source.files)) if is_lavis else blip2
        raise UserError(f"{where}: weights do not fit {said_by}: {'; '.join(problems[:8])}; {remedy}")
    if TIED in source.names() and not _is_same(source.tensor(TIED), source.tensor(EMBEDDING)):
        raise UserError(
            f"{blip2}: {shown(TIED)} differs from {shown(EMBEDDING)}; artkv reads models with tied embeddings only"
        )


def _is_same(head: Tensor, embedding: Tensor) -> bool:
    """Whether both are one tensor, up to the rounding of another dtype: LAVIS keeps fp16, OPT's folder may not."""
    if head.shape != embedding.shape:
        return False
    if head.dtype == embedding.dtype:
        return torch.equal(head, embedding)
    rows = zip(head.split(4096), embedding.split(4096), strict=True)
    return all(torch.allclose(a.float(), b.float(), rtol=2**-7, atol=1e-6) for a, b in rows)


def _load_tokenizer(folder: Path, config: Any) -> Any:
    # Without these transformers makes an empty tokenizer, and says nothing.
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise UserError(f"{folder}: no tokenizer there (neither tokenizer.json nor vocab.json); put OPT's files there")
    try:
        # Unless it is told, transformers asks whoever sits at the terminal whether to run code from there.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{folder}: no tokenizer can be loaded from it ({error}); put OPT's tokenizer files there"
        ) from None
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no padding token; OPT's is <pad>")
    if len(tokenizer) > config.text_config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, the model "
            f"{config.text_config.vocab_size}; they do not belong together"
        )
    return tokenizer


def _image_settings(folder: Path, vit_size: int) -> ImageSettings:
    try:
        processor = BlipImageProcessor.from_pretrained(folder)
    except Exception as error:
        raise UserError(
            f"{folder}: no preprocessor_config.json of a BlipImageProcessor ({error}); put the model's there"
        ) from None
    height, width = processor.size["height"], processor.size["width"]
    if (height, width) != (vit_size, vit_size):
        raise UserError(
            f"{folder}: preprocessor_config.json has size {height}x{width}, config.json a ViT of "
            f"{vit_size}x{vit_size}; put the model's own preprocessor_config.json there"
        )
    mean: Any = tuple(processor.image_mean)
    std: Any = tuple(processor.image_std)
    return ImageSettings(height, mean, std)
