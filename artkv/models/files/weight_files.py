"""Weights on disk, read tensor by tensor, and their hashes.

Reading one tensor at a time keeps the peak at one copy of the weights: a tensor whose dtype is the one
asked for stays memory-mapped, another is cast alone.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from artkv.config.paths import user_memory
from artkv.errors import UserError
from artkv.files import write_if_possible
from artkv.models.files.foreign_files import check_regular, read_object, reason_of, shown, told_as
from artkv.models.files.pickled_files import WEIGHTS_NAME, begins_as_checkpoint, check_sums, plain_tensors, read_pickle
from artkv.reading import parse_json, read_regular

# Among digests, that of what the tokenizer makes of texts.
TOKENIZATION = "settings.tokenization"
_FETCH = "fetch it again"
_MOST_NAMES_SHOWN = 5
# Threads that hash; each may hold a bfloat16 copy of one tensor.
_MOST_THREADS = 8


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
            check_regular(path, path, _FETCH)
            if begins_as_checkpoint(path):
                renamed = WEIGHTS_NAME if path.name == "model.safetensors" else path.with_suffix(".pth").name
                raise UserError(
                    f"{shown(path)}: is no safetensors file but PyTorch's, as its first bytes say; if it belongs here, "
                    f"rename it to {shown(renamed)}"
                )
            try:
                handle = safe_open(path, framework="pt")
                names = list(handle.keys())
            except (OSError, ValueError, SafetensorError) as error:
                raise UserError(
                    f"{shown(path)}: is not a readable safetensors file ({reason_of(error)}); {_FETCH}"
                ) from None
            self._handles[path] = handle
            for name in names:
                _check_once(name, self._file_of.get(name), path)
                self._file_of[name] = path

    def names(self) -> list[str]:
        return list(self._file_of)

    def tensor(self, name: str) -> Tensor:
        path = self._file_of[name]
        with told_as(f"{path}: {name}", _FETCH):
            return self._handles[path].get_tensor(name)

    def file_of(self, name: str) -> Path | None:
        """The file that holds a tensor; None where none does."""
        return self._file_of.get(name)


class PickledSource:
    """PyTorch `.bin` files, read with `weights_only=True`: no code in them is ever run."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self._tensors: dict[str, Tensor] = {}
        self._file_of: dict[str, Path] = {}
        for path in self.files:
            tensors = plain_tensors(read_pickle(path), path)
            for name in tensors:
                _check_once(name, self._file_of.get(name), path)
                self._file_of[name] = path
            self._tensors.update(tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def file_of(self, name: str) -> Path | None:
        """The file that holds a tensor; None where none does."""
        return self._file_of.get(name)


def _check_once(name: str, before: Path | None, path: Path) -> None:
    if before is not None:
        raise UserError(f"{shown(path)}: holds {shown(name)}, which {before.name} holds too; {_FETCH}")


def open_weights(folder: Path, setting: str) -> SafetensorsSource | PickledSource:
    """The weights of a transformers folder, sharded or not, safetensors before `.bin`; `setting` named it."""
    for stem, suffix, source in (("model", "safetensors", SafetensorsSource), ("pytorch_model", "bin", PickledSource)):
        # As transformers does where both are there.
        if os.path.lexists(folder / f"{stem}.{suffix}"):
            return source([folder / f"{stem}.{suffix}"])
        index = folder / f"{stem}.{suffix}.index.json"
        if os.path.lexists(index):
            return _open_shards(index, f".{suffix}", source)
    raise UserError(
        f"{shown(folder)}: holds neither model.safetensors nor pytorch_model.bin (nor their index files); "
        f"{setting} must name a folder written by save_pretrained"
    )


def _open_shards(
    index: Path, suffix: str, source: type[SafetensorsSource] | type[PickledSource]
) -> SafetensorsSource | PickledSource:
    """The weights that an index file names, all of which lie beside it.

    Its `total_size` is not compared: writers count tied weights once or twice.
    """
    folder, place = index.parent, shown(index)
    shard_of = read_object(index, _FETCH).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise UserError(f"{place}: its weight_map is no object with a file for each tensor; {_FETCH}")
    for name, shard in shard_of.items():
        # A path would read a file from anywhere. (A link may lead out of the folder: those of a hub's cache do.)
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(suffix) or "\0" in shard:
            raise UserError(
                f"{place}: {shown(name)} is in {shard!r:.200}, which is no name of a {suffix} file in {shown(folder)}; "
                f"not read, {_FETCH}"
            )
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if not os.path.lexists(folder / shard)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"{shown(folder)}: {index.name} names {missing[:5]}{more}, not there; fetch them again")
    opened = source(folder / shard for shard in shards)
    for name, shard in shard_of.items():
        if opened.file_of(name) != folder / shard:
            raise UserError(f"{place}: says that {shown(name)} is in {shown(shard)}, which lacks it; {_FETCH}")
    return opened


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of the tensor's shape and its values as bfloat16, so that the stored dtype does not matter."""
    sha = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    # Through int16: NumPy, which hashlib reads through, has no bfloat16.
    as_bfloat16 = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    sha.update(as_bfloat16.numpy().data)
    return sha.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity.

    By its least and its greatest value, which NaN passes through: 5 GB/s of bfloat16 on one core, where
    `torch.isfinite(tensor).all()` makes tensors as large and does 0.2.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(value.item()) for value in torch.aminmax(tensor))


def not_finite(named_tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Which tensors hold NaN or infinity, and how many values; None where all are finite."""
    counts = {}
    for name, tensor in named_tensors:
        if not is_finite(tensor):
            counts[name] = tensor.numel() - int(torch.isfinite(tensor).sum())
    if not counts:
        return None
    listed = ", ".join(f"{count:,} in {shown(name)}" for name, count in list(counts.items())[:_MOST_NAMES_SHOWN])
    more = f", and in {len(counts) - _MOST_NAMES_SHOWN} other tensors" if len(counts) > _MOST_NAMES_SHOWN else ""
    return f"values that are not finite numbers (NaN or infinity): {listed}{more}"


def digests(named_tensors: Iterator[tuple[str, Tensor]], files: list[Path], reading: str = "") -> dict[str, str]:
    """`tensor_digest` of each tensor; remembered for `files` as long as path, size and time stay.

    reading: whatever else decides which tensors are read from the files.

    Each core hashes over 1 GiB/s, so BLIP2-OPT-2.7b takes seconds; the memory spares each later start
    even those. `named_tensors` is consumed only when something changed.

    Raises `UserError` for weights that are damaged or not finite, which are remembered by nobody.
    """
    key = json.dumps([[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files])
    key += f"finite {reading}"
    memory_file = user_memory() / "weight_digests" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    try:
        remembered = parse_json(read_regular(memory_file))
        found = dict(remembered["digests"])
        if remembered["key"] == key and all(isinstance(digest, str) for digest in found.values()):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or an unreadable memory: hash again
    for path in files:
        check_sums(path)
    hashed: dict[str, Future[str]] = {}
    bad: list[tuple[str, Tensor]] = []
    with ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads())) as pool:
        try:
            for name, tensor in named_tensors:
                hashed[name] = pool.submit(tensor_digest, tensor)
                if not is_finite(tensor):
                    bad.append((name, tensor))
            computed = {name: future.result() for name, future in hashed.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is told need not wait until the rest is hashed
            raise
    if bad:
        where = ", ".join(map(shown, files))
        raise UserError(f"{where}: the weights hold {not_finite(bad)}; fetch them again, or use another checkpoint")
    write_if_possible(memory_file, json.dumps({"key": key, "digests": computed}))
    return computed


def combined_digest(digest_of: Mapping[str, str]) -> str:
    """One SHA-256 over all (name, digest) pairs, whatever their order."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digest_of.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def frozen_hash(digest_of: Mapping[str, str]) -> str:
    """`combined_digest` of what is frozen and, behind a plus, the digest of what the tokenizer does.

    Apart, because checkpoints of before there was the latter hold the former alone, and are read as they are.
    """
    frozen = {name: digest for name, digest in digest_of.items() if name != TOKENIZATION}
    return "+".join([combined_digest(frozen), *([digest_of[TOKENIZATION]] if TOKENIZATION in digest_of else [])])
