"""Makes sure that a cache holds the features of some pictures, and hands them to tables."""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from artkv.datasets.table import QuestionTable
from artkv.distributed import World
from artkv.errors import UserError
from artkv.feature_cache import fingerprint
from artkv.feature_cache.contents import BLANK, PictureMemo, picture_contents
from artkv.feature_cache.filling import Encoders, fill
from artkv.feature_cache.reading import CachedPaintings
from artkv.feature_cache.shards import read_header, verify
from artkv.feature_cache.shared_files import remove_abandoned
from artkv.feature_cache.store import SHARDS, FeatureStore, create_store, open_store

# How long another host's file may take to be seen through a network file system.
SEEN_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class CacheSettings:
    """What a cache is filled and read by.

    has_art: whether prefixes are made. knows_art_encoder: whether art features could be made. decoders: see `fill`.
    open_encoders: checks the encoders' files, those of the art encoder too where it is told True, and loads nothing;
    raises `UserError` for what is wrong with them.
    """

    folder: Path
    has_art: bool
    knows_art_encoder: bool
    decoders: int
    open_encoders: Callable[[bool, World], Encoders]


@dataclass(frozen=True)
class CachedTables:
    """Features of the pictures of some tables. contents: SHA-256 by path. has_art: whether prefixes are made."""

    store: FeatureStore
    contents: dict[str, str]
    has_art: bool

    def paintings(self, table: QuestionTable) -> CachedPaintings:
        """The paintings of one of the tables, to be loaded in batches."""
        keys = [self.contents[str(path)] for path in table.painting_paths]
        places = np.array([self.store.place_of[key] for key in [*keys, BLANK]], dtype=np.int64)
        return CachedPaintings(self.store.shards, places, self.has_art)


def decoded_before(folder: Path | None) -> Callable[[Path], bool]:
    """Tells the pictures that were decoded for this cache and have not changed since, for they need no check."""
    if folder is None:
        return lambda path: False
    # The memo is written when all its pictures have been encoded.
    memo = PictureMemo(folder / "pictures.json")
    return lambda path: memo.get(path) is not None


def prepare_features(
    settings: CacheSettings,
    tables: Sequence[QuestionTable],
    world: World,
    after_each_batch: Callable[[bool], None] = lambda has_shards: None,
) -> CachedTables:
    """Computes what the cache lacks of the tables' pictures, and of the blank one; called on all ranks.

    Encoders are loaded only if something is missing, and are gone when this returns. after_each_batch: see `fill`.
    Raises `UserError` with the reason where the folder's features are not those that these encoders would compute.
    """
    paths = [path for table in tables for path in table.painting_paths]
    store, contents = _filled(settings, paths, world, after_each_batch)
    gc.collect()  # streamed blocks are in reference cycles
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # what the encoders took, for training
    return CachedTables(store, contents, settings.has_art)


def _filled(
    settings: CacheSettings, paths: Sequence[Path], world: World, after_each_batch: Callable[[bool], None]
) -> tuple[FeatureStore, dict[str, str]]:
    """The store with nothing missing, and SHA-256 of each picture by path."""
    folder = settings.folder
    store, encoders = world.together(lambda: _open(settings, world))
    memo = PictureMemo(folder / "pictures.json")
    contents = picture_contents(paths, memo, world)
    path_of = {content: Path(name) for name, content in contents.items()}
    # Rank 0's view: another job may be writing here, and the ranks shall agree.
    wanted = {*path_of, BLANK}
    missing = world.broadcast(sorted(wanted - store.place_of.keys()))
    began = time.monotonic()
    if missing:
        world.on_main(lambda: _begin(folder, encoders))
        kind = fingerprint.digest(encoders.identity)
        pictures = {content: path_of.get(content) for content in missing}
        fill(folder / SHARDS, kind, pictures, encoders, settings.decoders, world, after_each_batch)
    found = store
    store = world.together(lambda: found if wanted <= found.place_of.keys() else _open_complete(folder, wanted))
    if missing and world.is_main:
        seconds = time.monotonic() - began
        print(
            f"artkv: encoded {len(missing)} pictures in {seconds:.1f} s, {len(missing) / seconds:.1f} a second; "
            f"{store.summary()}",
            file=sys.stderr,
            flush=True,
        )
    if world.is_main:
        _write_down(store, memo)
    return store, contents


def verify_store(folder: Path, world: World) -> int:
    """Reads every record and compares it with its checksum, the ranks sharing the shards; returns their number.

    Raises `UserError` that names every damaged file, or says that there is no cache.
    """

    def check_share() -> int:
        paths = sorted((folder / SHARDS).glob("features-*.safetensors"))[world.rank :: world.size]
        problems, verified = [], 0
        for path in tqdm(paths, desc="verifying", unit="shard", disable=None if world.is_main else True):
            try:
                shard = read_header(path)
                verify(shard)
                verified += len(shard.contents)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))
        return verified

    def check_there() -> None:
        if open_store(folder).found is None:
            raise UserError(
                f"frozen.feature_cache = {folder}: holds no feature cache, and nothing to verify; name the folder of "
                "one, or make it with artkv cache"
            )

    world.together(check_there)
    return sum(world.gather(world.together(check_share)))


def check_cache(settings: CacheSettings, world: World) -> None:
    """Raises `UserError` with the reason why the cache cannot be used, if it cannot; its records are not read."""
    _open(settings, world)


def _open(settings: CacheSettings, world: World) -> tuple[FeatureStore, Encoders]:
    """The folder, once it is known to fit, and the encoders that would fill it."""
    store = open_store(settings.folder)
    # A control run may add pictures to a cache that has art features, if it knows the EfficientNet.
    has_found_art = store.found is not None and store.found.art_weights is not None
    fills_art = settings.has_art or (has_found_art and settings.knows_art_encoder)
    encoders = settings.open_encoders(fills_art, world)
    if store.found is not None:
        wanted = encoders.identity if settings.has_art else encoders.identity.without_art()
        fingerprint.check_identity(settings.folder, store.found, wanted)
    return store, encoders


def _begin(folder: Path, encoders: Encoders) -> None:
    """Makes the folder, or checks that what is to be added is of the same kind."""
    try:
        create_store(folder, encoders.identity)
    except OSError as error:
        raise UserError(
            f"frozen.feature_cache = {folder}: cannot be written ({error.strerror}); give another"
        ) from None
    found = fingerprint.read(folder / "cache.json")
    fingerprint.check_identity(folder, found, encoders.identity)
    if found.art_weights is not None and encoders.identity.art_weights is None:
        raise UserError(
            f"frozen.feature_cache = {folder}: has EfficientNet features, and pictures are missing in it; set "
            "efficientnet.checkpoint to the one it was made with"
        )


def _open_complete(folder: Path, wanted: set[str]) -> FeatureStore:
    """The folder with all that rank 0 found in it or the ranks have written, as soon as this host sees it."""
    until = time.monotonic() + SEEN_WITHIN_SECONDS
    while True:
        store = open_store(folder)
        lacking = wanted - store.place_of.keys()
        if not lacking:
            return store
        if time.monotonic() > until:
            raise UserError(
                f"frozen.feature_cache = {folder}: features of {len(lacking)} pictures are there for other "
                "ranks and not seen here; give a folder that all hosts share"
            )
        time.sleep(1.0)


def _write_down(store: FeatureStore, memo: PictureMemo) -> None:
    try:
        remove_abandoned(store.folder)
        remove_abandoned(store.folder / SHARDS)
        store.write_index()
        memo.save()
    except (OSError, UserError):
        return  # a folder that is read-only or full now: the next start hashes and reads headers again
