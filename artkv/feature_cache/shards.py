"""One file of a feature cache: the features of some pictures, as safetensors.

A shard tells in its metadata which pictures it holds (SHA-256 of their files' bytes, sorted), a checksum of each
record and the fingerprint of what made it. Its name follows from the pictures, its bytes from all of these.

Letters in tensor names are explained in `artkv.batch`; each record is a picture's.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from artkv.errors import UserError
from artkv.feature_cache.shared_files import write_shared
from artkv.files import reason_of
from artkv.reading import Count, open_regular, parse_json, remedy_for, to_record

# A file of 46 MB of ViT-g's bf16 features; a kill loses at most that.
RECORDS_A_SHARD = 64

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FEATURES = "features"


@dataclass(frozen=True)
class Block:
    """Where a tensor of records lies in a file: its first byte, and each record's shape and bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A shard's description, of its header.

    contents: SHA-256 in hex of each record's picture. features: records of (N, V) of a ViT, (F,) or (M, F) of an art
    encoder.
    """

    path: Path
    fingerprint: str
    contents: tuple[str, ...]
    checksums: tuple[str, ...]
    features: Block


@dataclass(frozen=True)
class _Described:
    """What a shard's metadata holds."""

    fingerprint: str
    contents: list[str]
    checksums: list[str]


@dataclass(frozen=True)
class _Tensor:
    """What safetensors says of a tensor."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


def shard_name(contents: Sequence[str]) -> str:
    """The file's name, which follows from the pictures in it."""
    return f"features-{hashlib.sha256(''.join(contents).encode()).hexdigest()[:24]}.safetensors"


def write_shard(folder: Path, fingerprint: str, contents: Sequence[str], features: Tensor) -> None:
    """Writes one shard, whole or not at all. The features, a record each, are on the CPU, contents sorted.

    One that is there, of another job that fills the same cache, has the same bytes and may be open already.
    """
    features = features.contiguous()
    described = {
        "fingerprint": fingerprint,
        "contents": list(contents),
        "checksums": [_checksum(_as_bytes(record)) for record in features],
    }
    # One key: safetensors does not keep the order of several, and the bytes shall be the same each time.
    content = save({_FEATURES: features}, {"artkv": json.dumps(described)})
    write_shared(folder / shard_name(contents), content, replaces=False)


def read_header(path: Path) -> Shard:
    """The shard's description, without its features. Raises `UserError` for a file that is cut off or is no shard."""
    try:
        with open_regular(path) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < header_bytes < 2**26:
                raise ValueError("no header")
            header: dict[str, Any] = parse_json(file.read(header_bytes))
            size = os.fstat(file.fileno()).st_size
        metadata = parse_json(header.pop("__metadata__")["artkv"])
        described = to_record(_Described, metadata, "its metadata", "it is damaged")
        tensors = {name: to_record(_Tensor, entry, name, "it is damaged") for name, entry in header.items()}
        for name, tensor in tensors.items():
            _check_records(name, tensor, described)
        end = 8 + header_bytes + max(tensor.data_offsets[1] for tensor in tensors.values())
        blocks = {
            name: Block(8 + header_bytes + tensor.data_offsets[0], tuple(tensor.shape[1:]), _DTYPES[tensor.dtype])
            for name, tensor in tensors.items()
        }
        shard = Shard(
            path,
            described.fingerprint,
            tuple(described.contents),
            tuple(described.checksums),
            blocks[_FEATURES],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, UserError) as error:
        if isinstance(error, PermissionError):
            raise _forbidden(path, error) from None
        raise _damaged(path, f"cannot be read ({type(error).__name__}: {reason_of(error)})") from None
    if size != end:
        raise _damaged(path, f"has {size} bytes, its header says {end}")
    return shard


def _check_records(name: str, tensor: _Tensor, described: _Described) -> None:
    """Raises `ValueError` unless a tensor has a record for each picture, and lies where it has room."""
    begin, end = tensor.data_offsets
    num_bytes = _DTYPES[tensor.dtype].itemsize * math.prod(tensor.shape)
    num_pictures = len(described.contents)
    if name != _FEATURES or tensor.shape[0] != num_pictures or end - begin != num_bytes:
        raise ValueError(f"{name} has other than a record for each picture")
    if len(described.checksums) != num_pictures:
        raise ValueError("has other numbers of checksums and pictures")


def verify(shard: Shard) -> None:
    """Reads the whole shard; raises `UserError` if a record is not what was written."""
    try:
        with open_regular(shard.path) as file:
            for row, (content, checksum) in enumerate(zip(shard.contents, shard.checksums, strict=True)):
                file.seek(shard.features.offset + row * shard.features.record_bytes)
                if _checksum(file.read(shard.features.record_bytes)) != checksum:
                    raise _damaged(shard.path, f"record {row} (picture {content[:12]}...) is not what was written")
    except OSError as error:
        if isinstance(error, PermissionError):
            raise _forbidden(shard.path, error) from None
        raise _damaged(shard.path, f"cannot be read ({reason_of(error)})") from None


def _forbidden(path: Path, error: PermissionError) -> UserError:
    return UserError(f"{path}: cannot be read ({reason_of(error)}); {remedy_for(error, '')}")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; delete this file, `artkv cache` makes it again")


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _checksum(record: bytes | memoryview) -> str:
    return hashlib.sha256(record).hexdigest()
