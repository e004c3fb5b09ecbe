"""Weights on disk, read tensor by tensor, and their hashes.

Reading one tensor at a time keeps the peak at one copy of the weights: a tensor whose dtype is the one
asked for stays memory-mapped, another is cast alone.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from artkv.config.paths import user_cache
from artkv.errors import UserError


class TensorSource(Protocol):
    """Named tensors that are read when asked for."""

    def names(self) -> list[str]:
        """All tensor names."""

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped where the format allows it."""


class SafetensorsSource:
    """One or more safetensors files as one `TensorSource`."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self._file_of: dict[str, Path] = {}
        self._handles = {}
        for path in self.files:
            try:
                handle = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
            self._handles[path] = handle
            for name in handle.keys():  # noqa: SIM118 (safe_open is no dict)
                self._file_of[name] = path

    def names(self) -> list[str]:
        return list(self._file_of)

    def tensor(self, name: str) -> Tensor:
        return self._handles[self._file_of[name]].get_tensor(name)


class PickledSource:
    """PyTorch `.bin` or `.pth` files, read with `weights_only=True`: no code in them is ever run."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self._tensors: dict[str, Tensor] = {}
        for path in self.files:
            self._tensors.update(read_pickle(path))

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def read_pickle(path: Path, setting: str | None = None) -> dict[str, Any]:
    """What a PyTorch file holds, its tensors memory-mapped; `setting` names it in errors.

    Raises:
        UserError: if there is no such file, it holds more than tensors and plain values, or is no dict.
    """
    place = f"{setting} = {path}" if setting else str(path)
    if not path.is_file():
        raise UserError(f"{place}: no such file; give an existing one")
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        is_mappable = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except Exception as error:
        raise UserError(
            f"{place}: cannot be read without running code from it ({error}); "
            "convert it to safetensors where it came from"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: holds a {type(content).__name__}, expected a dict of tensors; give a checkpoint")
    return content


def open_weights(folder: Path, setting: str) -> SafetensorsSource | PickledSource:
    """The weights of a transformers folder, sharded or not, safetensors before `.bin`; `setting` named it."""
    for stem, suffix, source in (("model", "safetensors", SafetensorsSource), ("pytorch_model", "bin", PickledSource)):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"{folder}: {index.name} names {missing}, not there; fetch them again")
            return source(folder / shard for shard in shards)
        if (folder / f"{stem}.{suffix}").is_file():
            return source([folder / f"{stem}.{suffix}"])
    raise UserError(
        f"{folder}: holds neither model.safetensors nor pytorch_model.bin (nor their index files); "
        f"{setting} must name a folder written by save_pretrained"
    )


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of the tensor's shape and its values as bfloat16, so that the stored dtype does not matter."""
    sha = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    # Through int16: NumPy, which hashlib reads through, has no bfloat16.
    as_bfloat16 = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    sha.update(as_bfloat16.numpy().data)
    return sha.hexdigest()


def digests(named_tensors: Iterator[tuple[str, Tensor]], files: list[Path], reading: str = "") -> dict[str, str]:
    """`tensor_digest` of each tensor; remembered for `files` as long as path, size and time stay.

    reading: whatever else decides which tensors are read from the files.

    Hashing runs at over 1 GiB/s, so BLIP2-OPT-2.7b takes seconds; the memory spares each later start
    even those. `named_tensors` is consumed only when something changed.
    """
    key = json.dumps([[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files])
    key += reading
    memory_file = _memory_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    try:
        remembered = json.loads(memory_file.read_text())
        if remembered["key"] == key:
            return dict(remembered["digests"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or an unreadable memory: hash again
    computed = {name: tensor_digest(tensor) for name, tensor in named_tensors}
    _remember(memory_file, {"key": key, "digests": computed})
    return computed


def combined_digest(digest_of: Mapping[str, str]) -> str:
    """One SHA-256 over all (name, digest) pairs, whatever their order."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digest_of.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _memory_folder() -> Path:
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "artkv"
    except RuntimeError:  # nobody's home
        cache = user_cache()
    return cache / "weight_digests"


def _remember(path: Path, content: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(path)  # several ranks may write it at once; each replaces it whole
    except OSError:
        return  # a read-only home costs the next start its seconds, nothing else
