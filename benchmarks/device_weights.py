"""Random weights of a BLIP-2 that no file holds: each tensor is made where it is wanted, when it is asked for.

At the true size a file of them would be 7.5 GB to write once and to read and hash at each start. A tensor's values
follow from its name and the kind of device alone, so rows in processes of their own compute with the same weights.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BlipImageProcessor

import artkv.models.backbone.backends as backends
from artkv.config import ModelConfig
from artkv.models.files.blip2_files import TIED, Blip2Files, ImageSettings, read_folder_config, stock_blip2

_WEIGHT_STD = 0.02  # OPT's own initialisation
_QUERY_STD = 0.5  # as `random_world` has it: fresh query tokens are zeros, and all alike


class DeviceWeights:
    """A weight source without files: bfloat16 tensors by transformers' names, made on `device`."""

    def __init__(self, config: Any, device: torch.device) -> None:
        self.files: list[Path] = []
        self._shapes = {name: tuple(t.shape) for name, t in stock_blip2(config).state_dict().items() if name != TIED}
        self._device = device

    def names(self) -> list[str]:
        """All but the tied head's."""
        return list(self._shapes)

    def tensor(self, name: str) -> Tensor:
        """Matrices and embeddings normal, LayerNorms' weights ones, biases zeros."""
        shape = self._shapes[name]
        values = torch.zeros(shape, dtype=torch.bfloat16, device=self._device)
        if "norm" in name.lower() and name.endswith("weight"):
            return values.fill_(1.0)
        if len(shape) > 1:
            generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
            values.normal_(std=_QUERY_STD if name == "query_tokens" else _WEIGHT_STD, generator=generator)
        return values


def write_where_missing(folder: Path) -> None:
    """Safetensors of these weights in BLIP-2's folder, in four files, if it has none: 7.5 GB at the true size."""
    if not has_no_weights(folder):
        return
    weights = DeviceWeights(read_folder_config(folder, str(folder)), run_device())
    names = weights.names()
    shards = {f"model-{number:05d}.safetensors": names[number - 1 :: 4] for number in range(1, 5)}
    index = {"metadata": {}, "weight_map": {name: file for file, shard in shards.items() for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for file, shard in shards.items():
        save_file({n: weights.tensor(n).cpu() for n in shard}, folder / f"{file}.part", metadata={"format": "pt"})
    for file in shards:  # in a moment, since `has_no_weights` looks for one of them
        (folder / f"{file}.part").replace(folder / file)


class UnhashedFiles(Blip2Files):
    """Names and shapes stand for values in the digests, since hashing would bring all values to the host."""

    def weight_digests(self) -> dict[str, str]:
        settings = json.dumps(self.config.to_dict(), sort_keys=True, default=str)
        return {name: hashlib.sha256(f"{settings} {name}".encode()).hexdigest() for name in self.names()}


def has_no_weights(blip2: Path) -> bool:
    """Whether the folder is a BLIP-2 of which `random_world` wrote all but the weights."""
    return (blip2 / "config.json").is_file() and not any(blip2.glob("*.safetensors"))


def make_weights_where_missing(blip2: Path) -> None:
    """Has artkv in this process take weights from here, if the folder has none."""
    if not has_no_weights(blip2):
        return
    if not hasattr(backends, "open_blip2"):
        raise RuntimeError("artkv.models.backbone.backends has no open_blip2 any more; benchmarks/device_weights.py")
    backends.open_blip2 = random_files


def random_files(model: ModelConfig) -> Blip2Files:
    """What `open_blip2` gives for a folder, with weights from here."""
    folder = Path(model.blip2)
    config = read_folder_config(folder, model.blip2)
    processor: Any = BlipImageProcessor.from_pretrained(folder)
    size = config.vision_config.image_size
    return UnhashedFiles(
        config,
        AutoTokenizer.from_pretrained(folder),
        ImageSettings(size, tuple(processor.image_mean), tuple(processor.image_std)),
        DeviceWeights(config, run_device()),
    )


def random_stock_blip2(blip2: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' own model on `device` with the weights that artkv has there."""
    config = read_folder_config(blip2, str(blip2))
    source = DeviceWeights(config, device)
    model = stock_blip2(config)
    values = {name: source.tensor(name).to(dtype) for name in source.names()}
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    on_meta = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if on_meta:
        raise RuntimeError(f"tensors without a value: {on_meta[:5]}")
    return model.eval()


def run_device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
