"""A feature cache's folder: its description, its shards, and the index that spares a start the reading of all headers.

    cache.json     the fingerprint; written first
    shards/        features-HASH.safetensors, each whole or absent
    index.json     which shard holds which picture; written last, replaced whole
    pictures.json  size, times and SHA-256 of the picture files seen, so that unchanged ones are not hashed again

The shards are the truth. One that the index does not name, of a run that was killed or of another job, is found by
its header; so a lost or old index costs time and nothing else.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from artkv.batch import EncoderIdentity
from artkv.errors import UserError
from artkv.feature_cache import fingerprint
from artkv.feature_cache.shards import Block, Shard, read_header
from artkv.feature_cache.shared_files import write_shared
from artkv.reading import parse_json, read_regular

SHARDS = "shards"
# A picture takes some 70 of them.
_MOST_INDEX_BYTES = 2**30


class FeatureStore:
    """What a folder holds; a folder that is missing or empty holds nothing.

    found: what it was made with, None where there is no cache yet. shards: by name. place_of: for each picture's
    SHA-256 its shard and the record in it.
    """

    def __init__(
        self, folder: Path, found: EncoderIdentity | None, shards: list[Shard], is_indexed: bool = False
    ) -> None:
        self.folder = folder
        self._is_indexed = is_indexed
        self.found = found
        self.shards = shards
        self.place_of: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(shards):
            for row, content in enumerate(shard.contents):
                self.place_of.setdefault(content, (number, row))

    @property
    def num_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(shard.path.stat().st_size for shard in self.shards)

    def summary(self) -> str:
        """How much there is, in a line."""
        one = self.shards[0]
        record_bytes = one.image.record_bytes + (one.art.record_bytes if one.art else 0)
        return (
            f"{self.folder} holds features of {len(self.place_of)} pictures, the blank one included, "
            f"{record_bytes / 1e6:.3f} MB each, {self.num_bytes / 1e6:.1f} MB in all"
        )

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


def open_store(folder: Path) -> FeatureStore:
    """What the folder holds. Raises `UserError` if it is no cache, or a shard is cut off or not of this cache."""
    try:
        is_there, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:  # a name that is too long, or one that must not be looked at
        raise UserError(f"frozen.feature_cache = {folder}: cannot be read ({error.strerror}); give another") from None
    if is_there and not is_folder:
        raise UserError(f"frozen.feature_cache = {folder}: is a file; give a folder")
    description = folder / "cache.json"
    if not description.is_file():
        if any(not path.name.startswith(".") for path in folder.glob("*")):
            raise UserError(f"frozen.feature_cache = {folder}: holds something else; give a new or an empty folder")
        return FeatureStore(folder, None, [])
    found = fingerprint.read(description)
    indexed = _read_index(folder)
    shards = []
    for path in sorted((folder / SHARDS).glob("features-*.safetensors")):
        entry = indexed.get(path.name)
        # Renamed into place when complete: one that the index knows by its size needs no second look.
        shard = _from_index(path, entry) if entry and entry["bytes"] == path.stat().st_size else read_header(path)
        if shard.fingerprint != fingerprint.digest(found):
            raise UserError(f"{path}: was not made with what {description} says; delete this file")
        shards.append(shard)
    return FeatureStore(folder, found, shards, is_indexed=indexed.keys() == {shard.path.name for shard in shards})


def create_store(folder: Path, identity: EncoderIdentity) -> None:
    """Makes the folder and its description, if there is none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cache.json"
    if not path.is_file():
        write_shared(path, fingerprint.to_json(identity).encode())
    (folder / SHARDS).mkdir(exist_ok=True)


def _described(shard: Shard) -> dict[str, Any]:
    return {
        "fingerprint": shard.fingerprint,
        "image": _block_to_json(shard.image),
        "art": None if shard.art is None else _block_to_json(shard.art),
    }


def _block_to_json(block: Block) -> dict[str, Any]:
    return asdict(block) | {"dtype": str(block.dtype).removeprefix("torch.")}


def _block_from_json(tree: dict[str, Any]) -> Block:
    return Block(tree["offset"], tuple(tree["shape"]), getattr(torch, tree["dtype"]))


def _from_index(path: Path, entry: dict[str, Any]) -> Shard:
    art = None if entry["art"] is None else _block_from_json(entry["art"])
    return Shard(path, entry["fingerprint"], tuple(entry["contents"]), (), _block_from_json(entry["image"]), art)


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
