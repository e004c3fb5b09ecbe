"""Writes BLIP-2 with what was trained merged in: a transformers folder, or a LAVIS `.pth`.

Tensors are read, merged and written one after the other; those that were not trained come memory-mapped from the
files that they were read from and are never copied.
"""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Blip2Processor, BlipImageProcessor

from artkv.datasets.tokenization import newline_token_id
from artkv.models.files.blip2_files import LN_VISION_EPS_KEY, Blip2Files, tokenizer_folder_files
from artkv.models.files.lavis_files import SETTINGS
from artkv.models.files.lavis_names import LavisNamed
from artkv.models.files.weight_files import TensorSource

IMAGE_TOKEN = "<image>"

_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"
# What `leave_out` names, by the beginnings of LAVIS's names.
_PARTS = {"vit": "visual_encoder.", "opt": "opt_model."}


class MergedSource:
    """A `TensorSource` of BLIP-2 in which trained tensors take the place of the files'.

    Whole trained tensors come as they are, in fp32; of a LoRA pair (A, B) the sum W + scale B A, in fp32 as well.
    Everything else stays in the dtype of its file.

    trained: by backend-neutral name; tensors that are none of BLIP-2's are not allowed.
    lora_scale: alpha / rank.
    """

    def __init__(self, files: Blip2Files, trained: Mapping[str, Tensor], lora_scale: float) -> None:
        self._source = files.source
        self._names = sorted(files.names())
        self._trained = trained
        self._lora_scale = lora_scale
        wrapped = {name.removesuffix(_LORA_A) + ".weight" for name in trained if name.endswith(_LORA_A)}
        whole = {name for name in trained if not name.endswith((_LORA_A, _LORA_B))}
        self.merged = whole | wrapped
        if strange := self.merged - set(self._names):
            raise ValueError(f"trained, and not in BLIP-2: {sorted(strange)[:5]}")
        self._wrapped = wrapped

    def names(self) -> list[str]:
        """All tensor names, sorted, without the tied head."""
        return self._names

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, merged."""
        if name in self._wrapped:
            stem = name.removesuffix(".weight")
            a, b = self._trained[stem + _LORA_A], self._trained[stem + _LORA_B]
            return self._source.tensor(name).float() + self._lora_scale * (b.float() @ a.float())
        if name in self._trained:
            return self._trained[name].float()
        return self._source.tensor(name)


def write_transformers_folder(files: Blip2Files, weights: TensorSource, folder: Path) -> None:
    """Fills the existing `folder` with what `Blip2ForConditionalGeneration.from_pretrained` loads.

    Tokenizer and processor are the source folder's own files; for LAVIS's weights they are made as transformers' own
    conversion of LAVIS's models makes them: with `<image>` added to OPT's tokenizer, and answers that end on a newline.
    """
    config: Any = copy.deepcopy(files.config)
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.dtype = str(_prevailing_dtype(files)).removeprefix("torch.")
    own_files = tokenizer_folder_files(files)
    for path in own_files:
        shutil.copy(path, folder / path.name)
    if not own_files:
        tokenizer = copy.deepcopy(files.tokenizer)
        text: Any = config.text_config
        if len(tokenizer) < text.vocab_size or IMAGE_TOKEN in tokenizer.get_vocab():
            tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
            config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        text.eos_token_id = newline_token_id(files.tokenizer)
        image = files.image_settings
        processor = BlipImageProcessor(
            size={"height": image.size, "width": image.size}, image_mean=list(image.mean), image_std=list(image.std)
        )
        if config.image_token_index is None:  # OPT's vocabulary has no room for it
            tokenizer.save_pretrained(folder)
        else:
            Blip2Processor(processor, tokenizer, num_query_tokens=config.num_query_tokens).save_pretrained(folder)
        processor.save_pretrained(folder)
    config.save_pretrained(folder)
    write_safetensors(folder / "model.safetensors", weights, weights.names(), {"format": "pt"})


def write_lavis_file(
    files: Blip2Files, weights: TensorSource, path: Path, leave_out: Sequence[Literal["vit", "opt"]] = ()
) -> None:
    """Writes a checkpoint for `Blip2OPT` of LAVIS: its module names, under `model`, for a strict `load_state_dict`.

    leave_out: parts that LAVIS loads from elsewhere, as its own checkpoints leave them out.

    Beside it are the picture's size under `config`, where LAVIS's training puts it, and what is none of LAVIS's
    constants under `artkv`; LAVIS reads `model` alone.

    Raises:
        UserError: if LAVIS cannot express the model; see `split_qkv_bias`.
    """
    config = files.config
    named = LavisNamed(weights)
    left_out = tuple(_PARTS[part] for part in leave_out)
    state = {name: _alone(named.tensor(name)) for name in named.names() if not name.startswith(left_out)}
    if "opt" not in leave_out:
        state["opt_model.lm_head.weight"] = state["opt_model.model.decoder.embed_tokens.weight"]
    positions = config.qformer_config.max_position_embeddings
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(positions)[None]
    image = files.image_settings
    settings = {
        "vision_config": _kept(config.vision_config, ("num_attention_heads", "hidden_act", "layer_norm_eps"))
        | {LN_VISION_EPS_KEY: files.ln_vision_eps},
        "qformer_config": _kept(config.qformer_config, ("num_attention_heads", "hidden_act", "layer_norm_eps")),
        "images": {"mean": image.mean, "std": image.std},
    }
    lavis_config = {
        "model": {"arch": "blip2_opt", "image_size": image.size, "num_query_token": config.num_query_tokens}
    }
    torch.save({"model": state, "config": lavis_config, SETTINGS: json.dumps(settings)}, path)


def write_safetensors(path: Path, source: TensorSource, names: Iterable[str], metadata: Mapping[str, str]) -> None:
    """Writes tensors one after the other, in the order of `names`, so that no more than one of them is in memory.

    The format's own library wants all of them at once, and copies each.
    """
    names = list(names)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = source.tensor(name)
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligned, as the format asks for
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(_bytes_of(source.tensor(name)).numpy().data)


def _bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's memory as it lies there, (bytes)."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _alone(tensor: Tensor) -> Tensor:
    """The same memory as a tensor with a storage of its own: of a part of a tensor, `torch.save` writes the whole."""
    return torch.from_numpy(_bytes_of(tensor).numpy()).view(tensor.dtype).view(tensor.shape)


def _prevailing_dtype(files: Blip2Files) -> torch.dtype:
    """That of most weights: LAVIS's files have the ViT and OPT in fp16, the Q-Former in fp32."""
    elements: Counter[torch.dtype] = Counter()
    for name in files.names():
        tensor = files.source.tensor(name)
        elements[tensor.dtype] += tensor.numel()
    return elements.most_common(1)[0][0]


def _kept(section: Any, keys: Iterable[str]) -> dict[str, Any]:
    return {key: getattr(section, key) for key in keys}
