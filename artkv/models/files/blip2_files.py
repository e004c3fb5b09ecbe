"""Opens BLIP-2 as it is published: a transformers folder or hub id, or a LAVIS `.pth`. All backends load from it."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, BlipImageProcessor

from artkv.config import ModelConfig
from artkv.datasets.tokenization import newline_token_id
from artkv.errors import UserError
from artkv.models.files import foreign_files
from artkv.models.files.foreign_files import check_is_there, check_regular, expanded, read_object, told_as
from artkv.models.files.hub import SETTINGS_FILES, local_folder
from artkv.models.files.lavis_files import IMAGE_MEAN, IMAGE_STD, LN_VISION_EPS, LavisSource, lavis_config
from artkv.models.files.model_configs import check_agreement, check_layers, check_settings_files, check_tokenizer_files
from artkv.models.files.tokenizer_digest import tokenization_digest
from artkv.models.files.weight_files import TOKENIZATION, TensorSource, digests, open_weights

BLIP2_OPT_2_7B = "Salesforce/blip2-opt-2.7b"

# Tied to the token embedding: a file may hold it or leave it out, and it is never read.
TIED = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.decoder.embed_tokens.weight"

# Of the vision config: eps of the LayerNorm after the ViT's blocks, LAVIS's ln_vision, where it is not the blocks'.
# transformers ignores it.
LN_VISION_EPS_KEY = "post_layernorm_eps"

_WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
    found = {
        f"settings.{name}": hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in meaning.items()
    }
    return found | {TOKENIZATION: tokenization_digest(files.tokenizer)}


def open_blip2(model: ModelConfig) -> Blip2Files:
    """Opens what `model.blip2`, and for a LAVIS `.pth` `model.opt` and `model.vit`, name.

    All that can be wrong with the files is found here, in a second or two: every tensor's name and shape is compared.

    Raises:
        UserError: if a file is missing or superfluous, a tensor missing, unexpected or of another shape.
    """
    files = _open_lavis(model) if model.is_lavis_file else _open_folder(model)
    _check_weights(files, model.blip2)
    newline_token_id(files.tokenizer)
    return files


def stock_blip2(config: Any, blip2: str | None = None) -> Any:
    """transformers' `Blip2ForConditionalGeneration` on the meta device: no time and no memory for random weights.

    blip2: `model.blip2`, for messages; None: the config knows where it is from.
    """
    with (
        told_as(
            f"the config of model.blip2 = {blip2 or config._name_or_path!r:.300}",
            "put the config there that belongs to its weights",
        ),
        torch.device("meta"),
    ):
        return Blip2ForConditionalGeneration(config)


def tokenizer_folder_files(files: Blip2Files) -> list[Path]:
    """The files beside config and weights of the transformers folder that was opened; none for LAVIS's files."""
    if isinstance(files.source, LavisSource):
        return []
    folder = files.source.files[0].parent
    found = {path for pattern in SETTINGS_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != "config.json" and not path.name.endswith(".index.json"))


def read_lavis_config(model: ModelConfig) -> Any:
    """The config of the LAVIS `.pth` in `model.blip2`."""
    return _lavis_source(model)[1]


def _open_folder(model: ModelConfig) -> Blip2Files:
    folder = local_folder(model.blip2, "model.blip2", model.revision)
    config = read_folder_config(folder, model.blip2)
    source = open_weights(folder, "model.blip2")
    check_layers(config, source.names(), folder / "config.json")
    return Blip2Files(
        config, _load_tokenizer(folder, config), _image_settings(folder, config.vision_config.image_size), source
    )


def _open_lavis(model: ModelConfig) -> Blip2Files:
    source, config, opt = _lavis_source(model)
    image = source.settings.get("images", {})
    mean, std = image.get("mean", IMAGE_MEAN), image.get("std", IMAGE_STD)
    with told_as(model.blip2, "export it again"):
        settings = ImageSettings(config.vision_config.image_size, *_normalisation(mean, std))
    return Blip2Files(config, _load_tokenizer(opt, config), settings, source)


def _lavis_source(model: ModelConfig) -> tuple[LavisSource, Any, Path]:
    """The weights, their config, and the local folder of OPT."""
    path = expanded(model.blip2, "model.blip2")
    check_regular(path, f"model.blip2 = {model.blip2!r}", "give a LAVIS .pth, a folder or a hub id")
    if model.opt is None:
        raise UserError(
            f"model.opt is not set, and the LAVIS file {path} holds neither OPT nor its tokenizer; "
            "give facebook/opt-2.7b or its folder"
        )
    opt = local_folder(model.opt, "model.opt")
    check_is_there(opt / "config.json", f"model.opt = {model.opt!r}", "give OPT's folder as it is published")
    check_settings_files(opt, "model.opt")
    with told_as(opt / "config.json", "give OPT's folder as it is published"):
        text_config: Any = AutoConfig.from_pretrained(opt, trust_remote_code=False)
    if text_config.model_type == "blip-2":
        text_config = text_config.text_config
    if text_config.model_type != "opt":
        raise UserError(f"model.opt = {model.opt!r}: is {text_config.model_type}, expected opt; give facebook/opt-2.7b")
    vit = None if model.vit is None else expanded(model.vit, "model.vit")
    with told_as(", ".join(map(str, [path, *([] if vit is None else [vit])])), "give a BLIP-2 that LAVIS wrote"):
        source = LavisSource(path, vit, opt)
        config: Any = lavis_config(source, text_config)
    check_agreement(config, f"{path} with {opt / 'config.json'}")
    config._attn_implementation = "sdpa"
    config._name_or_path = str(path)
    if not hasattr(config.vision_config, LN_VISION_EPS_KEY):
        setattr(config.vision_config, LN_VISION_EPS_KEY, LN_VISION_EPS)
    return source, config, opt


def read_folder_config(folder: Path, blip2: str) -> Any:
    """The config in BLIP-2's folder, which `model.blip2` names as `blip2`."""
    check_is_there(folder / "config.json", f"model.blip2 = {blip2!r}", "give a folder of save_pretrained")
    check_settings_files(folder, "model.blip2")
    written = read_object(folder / "config.json", "put BLIP-2's there")
    found = written.get("model_type")
    if found != "blip-2":
        raise UserError(f"model.blip2 = {blip2!r}: is {found!r:.80}, expected blip-2 with opt; give {BLIP2_OPT_2_7B}")
    with told_as(f"model.blip2 = {blip2!r}: {folder}/config.json", "put BLIP-2's there"):
        config: Any = Blip2Config.from_pretrained(folder, trust_remote_code=False)
    if config.text_config.model_type != "opt":
        raise UserError(
            f"model.blip2 = {blip2!r}: is blip-2 with {config.text_config.model_type}, expected blip-2 "
            f"with opt; give {BLIP2_OPT_2_7B}"
        )
    check_agreement(config, folder / "config.json", written)
    config._attn_implementation = "sdpa"
    return config


def _check_weights(files: Blip2Files, blip2: str) -> None:
    source = files.source
    is_lavis = isinstance(source, LavisSource)
    stock = stock_blip2(files.config, blip2)
    shown = source.shown if isinstance(source, LavisSource) else foreign_files.shown
    said_by = "their files" if is_lavis else "config.json"
    expected = {n: tuple(t.shape) for n, t in stock.state_dict().items() if n != TIED}
    found = set(files.names())
    problems = []
    if TIED not in source.names() and TIED in dict(stock.named_parameters()):
        problems.append(f"{shown(TIED)} is missing, which {said_by} says is not tied (tie_word_embeddings = false)")
    if missing := sorted(expected.keys() - found):
        problems.append(f"{len(missing)} missing: {', '.join(map(shown, missing[:5]))}")
    if unexpected := sorted(found - expected.keys()):
        problems.append(f"{len(unexpected)} unexpected: {', '.join(map(shown, unexpected[:5]))}")
    for name in sorted(found & expected.keys()):
        shape = tuple(source.tensor(name).shape)
        if shape != expected[name]:
            problems.append(f"{shown(name)} has shape {shape}, {said_by} says {expected[name]}")
        elif source.tensor(name).dtype not in _WEIGHT_DTYPES:
            dtype = str(source.tensor(name).dtype).removeprefix("torch.")
            problems.append(f"{shown(name)} holds {dtype}, no plain floating-point numbers")
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
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        if os.path.lexists(folder / name):  # transformers tells a file that may not be read as one of another kind
            check_regular(folder / name, folder / name, "put OPT's tokenizer files there")
    check_tokenizer_files(folder, "put OPT's tokenizer files there")
    with told_as(f"{folder}: the tokenizer", "put OPT's tokenizer files there"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.get_vocab(), tokenizer("a\nb", add_special_tokens=False)  # what would fail later, fails here
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no padding token; put OPT's there, whose <pad> is one")
    vocabulary = tokenizer.get_vocab()
    if len(set(vocabulary.values())) < len(vocabulary):
        raise UserError(f"{folder}: its tokenizer has one id for several tokens; put the model's own tokenizer there")
    token, highest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))  # ids may have gaps
    size = config.text_config.vocab_size
    if highest >= size:
        raise UserError(
            f"{folder}: its tokenizer has the id {highest:,} for {token!r:.80}, and the model's embedding has {size:,} "
            f"rows, for ids to {size - 1:,}; put the model's own tokenizer there"
        )
    return tokenizer


def _image_settings(folder: Path, vit_size: int) -> ImageSettings:
    path = folder / "preprocessor_config.json"
    if not os.path.lexists(path):
        raise UserError(f"{folder}: no preprocessor_config.json of a BlipImageProcessor; put the model's there")
    check_regular(path, path, "put the model's own there")
    if "size" not in read_object(path, "put the model's own there"):  # transformers would take another model's
        raise UserError(f"{path}: has no size of the ViT's pictures; put the model's own there")
    with told_as(path, "put the model's own there"):
        processor: Any = BlipImageProcessor.from_pretrained(folder, trust_remote_code=False)
        height, width = processor.size["height"], processor.size["width"]
        if type(height) is not int or type(width) is not int:
            raise ValueError(f"its size has height {height!r:.80} and width {width!r:.80}, expected whole numbers")
        mean, std = _normalisation(processor.image_mean, processor.image_std)
        _check_processing(processor)
    if (height, width) != (vit_size, vit_size):
        raise UserError(
            f"{folder}: preprocessor_config.json has size {height}x{width}, config.json a ViT of "
            f"{vit_size}x{vit_size}; put the model's own preprocessor_config.json there"
        )
    return ImageSettings(height, mean, std)


def _normalisation(mean: Any, std: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of the three channels; `ValueError` for anything but finite numbers, and deviations above 0."""
    for name, values in (("mean", mean), ("std", std)):
        is_three = isinstance(values, list | tuple) and len(values) == 3
        if not is_three or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ValueError(f"its {name} is {values!r:.100}, expected three numbers")
    if min(std) <= 0:
        raise ValueError(f"its std is {std!r:.100}, expected three numbers above 0")
    for name, values in (("mean", mean), ("std", std)):
        if min(values) < 0 or max(values) > 1:
            told = (
                "of pixels from 0 to 1 it has numbers of 0 to 1, and of pixels from 0 to 255 it is to be divided by 255"
            )
            raise ValueError(f"its {name} is {values!r:.100}: {told}")
    return tuple(mean), tuple(std)  # type: ignore[return-value]


def _check_processing(processor: Any) -> None:
    """`ValueError` where pictures are to be made otherwise than `PaintingTransform` makes them."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if getattr(processor, step) not in (True, None):
            value = json.dumps(getattr(processor, step))
            raise ValueError(f"its {step} is {value:.80}, and artkv does it, as BLIP-2 wants")
    for step in ("do_center_crop", "do_pad"):
        if getattr(processor, step, None) not in (False, None):
            value = json.dumps(getattr(processor, step))
            raise ValueError(f"its {step} is {value:.80}, and artkv takes pictures whole, as BLIP-2 wants")
    if not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"its rescale_factor is {processor.rescale_factor!r:.80}, expected 1/255")
    if processor.resample not in (None, Image.Resampling.BICUBIC):
        raise ValueError(f"its resample is {processor.resample!r:.80}, expected 3, which is bicubic")
