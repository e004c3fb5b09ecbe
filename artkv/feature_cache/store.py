"""A feature cache's folder: in it a folder for each encoder, with its description, its shards, and their index.

    cache.json          the format; written first
    pictures.json       size, times and SHA-256 of the picture files seen, so that unchanged ones are not hashed again
    ENCODER-HASH/       an encoder read in one way; the name follows from all that its features depend on
      cache.json        the fingerprint; written first
      shards/           features-HASH.safetensors, each whole or absent
      index.json        which shard holds which picture; written last, replaced whole

The shards are the truth. One that the index does not name, of a run that was killed or of another job, is found by
its header; so a lost or old index costs time and nothing else. The index spares a start the reading of all headers.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from artkv.batch import EncoderIdentity
from artkv.errors import UserError
from artkv.feature_cache import fingerprint
from artkv.feature_cache.shards import Block, Shard, read_header
from artkv.feature_cache.shared_files import write_shared
from artkv.reading import parse_json, read_regular, remedy_for

SHARDS = "shards"
_DESCRIPTION = "cache.json"
# A picture takes some 70 of them.
_MOST_INDEX_BYTES = 2**30


class FeatureStore:
    """What a cache holds of one encoder; a folder that is missing or empty holds nothing.

    shards: by name. place_of: for each picture's SHA-256 its shard and the record in it.
    """

    def __init__(self, folder: Path, shards: list[Shard], is_indexed: bool = False) -> None:
        self.folder = folder
        self._is_indexed = is_indexed
        self.shards = shards
        self.place_of: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(shards):
            for row, content in enumerate(shard.contents):
                self.place_of.setdefault(content, (number, row))

    @property
    def num_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(shard.path.stat().st_size for shard in self.shards)

    @property
    def record_bytes(self) -> int:
        """Bytes of one picture's features."""
        return self.shards[0].features.record_bytes

    def write_index(self) -> None:
        """Writes down what the shards hold, unless the index says so already."""
        if self._is_indexed:
            return
        entries = [
            {"name": s.path.name, "bytes": s.path.stat().st_size, **_described(s), "contents": s.contents}
            for s in self.shards
        ]
        content = {"format": fingerprint.FORMAT, "sha256": _sha256(entries), "shards": entries}
        write_shared(self.folder / "index.json", json.dumps(content).encode())
        self._is_indexed = True


def summary(root: Path, stores: Sequence[FeatureStore]) -> str:
    """How much a cache holds of some encoders, in a line."""
    distinct = {store.folder: store for store in stores}.values()
    record_bytes = sum(store.record_bytes for store in distinct)
    num_bytes = sum(store.num_bytes for store in distinct)
    return (
        f"{root} holds features of {len(stores[0].place_of)} pictures, the blank one included, "
        f"{record_bytes / 1e6:.3f} MB each, {num_bytes / 1e6:.1f} MB in all"
    )


def check_root(root: Path) -> bool:
    """Whether there is a cache; `UserError` if the folder is no cache and not empty, or of another format."""
    try:
        is_there, is_folder = root.exists(), root.is_dir()
        names = os.listdir(root) if is_folder else []
    except OSError as error:  # a name that is too long, or one that must not be looked at
        remedy = remedy_for(error, "give another")
        raise UserError(f"frozen.feature_cache = {root}: cannot be read ({error.strerror}); {remedy}") from None
    if is_there and not is_folder:
        raise UserError(f"frozen.feature_cache = {root}: is a file; give a folder")
    description = root / _DESCRIPTION
    if not description.is_file():
        if any(not name.startswith(".") for name in names):
            raise UserError(f"frozen.feature_cache = {root}: holds something else; give a new or an empty folder")
        return False
    fingerprint.check_root(description)
    return True


def store_folder(root: Path, identity: EncoderIdentity) -> Path:
    """Where a cache keeps the features of an encoder."""
    return root / fingerprint.folder_name(identity)


def shard_paths(root: Path) -> list[Path]:
    """The shards of all encoders, sorted."""
    return [path for folder in sorted(root.iterdir()) if folder.is_dir() for path in _shards_in(folder / SHARDS)]


def _shards_in(folder: Path) -> list[Path]:
    """Those of one encoder, sorted; `OSError` where they may not be seen, which `glob` takes for none."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [folder / name for name in names if fnmatchcase(name, "features-*.safetensors")]


def open_store(root: Path, identity: EncoderIdentity) -> FeatureStore:
    """What a cache holds of an encoder.

    Raises `UserError` if the folder is no cache, or a shard is cut off or not of this encoder.
    """
    folder = store_folder(root, identity)
    description = folder / _DESCRIPTION
    if not check_root(root) or not description.is_file():
        return FeatureStore(folder, [])
    if fingerprint.read(description) != identity:
        raise UserError(f"{description}: describes another encoder than its folder's name; delete {folder}")
    indexed = _read_index(folder)
    shards = []
    for path in _shards_in(folder / SHARDS):
        entry = indexed.get(path.name)
        # Renamed into place when complete: one that the index knows by its size needs no second look.
        shard = _from_index(path, entry) if entry and entry["bytes"] == path.stat().st_size else read_header(path)
        if not os.access(path, os.R_OK):  # which the index's words would hide until the first batch
            error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy_for(error, '')}") from error
        if shard.fingerprint != fingerprint.digest(identity):
            raise UserError(f"{path}: was not made with what {description} says; delete this file")
        shards.append(shard)
    return FeatureStore(folder, shards, is_indexed=indexed.keys() == {shard.path.name for shard in shards})


def create_store(root: Path, identity: EncoderIdentity) -> None:
    """Makes the folders and their descriptions, where there are none yet."""
    root.mkdir(parents=True, exist_ok=True)
    _describe(root / _DESCRIPTION, json.dumps({"format": fingerprint.FORMAT}) + "\n")
    folder = store_folder(root, identity)
    folder.mkdir(exist_ok=True)
    _describe(folder / _DESCRIPTION, fingerprint.to_json(identity))
    (folder / SHARDS).mkdir(exist_ok=True)


def _describe(path: Path, text: str) -> None:
    write_shared(path, text.encode(), replaces=False)


def _described(shard: Shard) -> dict[str, Any]:
    return {"fingerprint": shard.fingerprint, "features": _block_to_json(shard.features)}


def _block_to_json(block: Block) -> dict[str, Any]:
    return asdict(block) | {"dtype": str(block.dtype).removeprefix("torch.")}


def _block_from_json(tree: dict[str, Any]) -> Block:
    return Block(tree["offset"], tuple(tree["shape"]), getattr(torch, tree["dtype"]))


def _from_index(path: Path, entry: dict[str, Any]) -> Shard:
    return Shard(path, entry["fingerprint"], tuple(entry["contents"]), (), _block_from_json(entry["features"]))


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries by the shard's name; none where the index is absent, damaged or old: the headers say the same."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        tree = parse_json(read_regular(folder / "index.json", _MOST_INDEX_BYTES))
        # By its checksum it is what `write_index` wrote; a wrong offset would read other pictures' features.
        if tree["format"] == fingerprint.FORMAT and tree["sha256"] == _sha256(tree["shards"]):
            return {entry["name"]: entry for entry in tree["shards"]}
    return {}


def _sha256(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
