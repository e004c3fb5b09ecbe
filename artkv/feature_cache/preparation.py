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

from artkv.batch import EncoderIdentity
from artkv.datasets.table import QuestionTable
from artkv.distributed import World
from artkv.errors import UserError
from artkv.feature_cache.contents import BLANK, PictureMemo, picture_contents
from artkv.feature_cache.filling import Encoder, PictureReading, fill
from artkv.feature_cache.reading import CachedPaintings, Records
from artkv.feature_cache.shards import read_header, verify
from artkv.feature_cache.shared_files import remove_abandoned
from artkv.feature_cache.store import (
    SHARDS,
    FeatureStore,
    check_root,
    create_store,
    open_store,
    shard_paths,
    summary,
)

# How long another host's file may take to be seen through a network file system.
SEEN_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class CacheSettings:
    """What a cache is filled and read by.

    pictures: how they are decoded. open_encoders: checks the files of the encoders whose features are wanted, the ViT
    first, and loads nothing; raises `UserError` for what is wrong with them.
    """

    folder: Path
    pictures: PictureReading
    open_encoders: Callable[[World], Sequence[Encoder]]


@dataclass(frozen=True)
class CachedTables:
    """Features of the pictures of some tables: a store of the ViT's, and of each art encoder's.

    root: the cache's folder. contents: SHA-256 by path.
    """

    root: Path
    stores: tuple[FeatureStore, ...]
    contents: dict[str, str]

    def summary(self) -> str:
        """How much there is, in a line."""
        return summary(self.root, self.stores)

    def paintings(self, table: QuestionTable) -> CachedPaintings:
        """The paintings of one of the tables, to be loaded in batches."""
        keys = [*(self.contents[str(path)] for path in table.painting_paths), BLANK]
        vit, *art = (
            Records(store.shards, np.array([store.place_of[key] for key in keys], dtype=np.int64))
            for store in self.stores
        )
        return CachedPaintings(vit, art)


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

    Each encoder computes what is missing of its own features; one that lacks none is not loaded, and all are gone when
    this returns. after_each_batch: see `fill`. Raises `UserError` where the folder is no cache or damaged.
    """
    paths = [path for table in tables for path in table.painting_paths]
    stores, contents = _filled(settings, paths, world, after_each_batch)
    gc.collect()  # streamed blocks are in reference cycles
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # what the encoders took, for training
    return CachedTables(settings.folder, stores, contents)


def _filled(
    settings: CacheSettings, paths: Sequence[Path], world: World, after_each_batch: Callable[[bool], None]
) -> tuple[tuple[FeatureStore, ...], dict[str, str]]:
    """Each encoder's store with nothing missing, and SHA-256 of each picture by path."""
    folder = settings.folder
    opened = world.together(lambda: _open(settings, world))
    memo = PictureMemo(folder / "pictures.json")
    contents = picture_contents(paths, memo, world)
    path_of = {content: Path(name) for name, content in contents.items()}
    # Rank 0's view: another job may be writing here, and the ranks shall agree.
    wanted = {*path_of, BLANK}
    lacking = world.broadcast([sorted(wanted - store.place_of.keys()) for _, store in opened])
    for missing, encoders in _lacking_alike([encoder for encoder, _ in opened], lacking):
        began = time.monotonic()
        world.on_main(lambda encoders=encoders: _begin(folder, encoders))  # type: ignore[misc]
        pictures = {content: path_of.get(content) for content in missing}
        fill(folder, encoders, pictures, settings.pictures, world, after_each_batch)
        if world.is_main:
            _say_encoded(len(missing), encoders, time.monotonic() - began)

    def complete(encoder: Encoder, found: FeatureStore) -> FeatureStore:
        return found if wanted <= found.place_of.keys() else _open_complete(folder, encoder.identity, wanted)

    stores = world.together(lambda: tuple(complete(encoder, found) for encoder, found in opened))
    if world.is_main:
        if any(lacking):
            print(f"artkv: {summary(folder, stores)}", file=sys.stderr, flush=True)
        _write_down(folder, stores, memo)
    return stores, contents


def _lacking_alike(
    encoders: Sequence[Encoder], lacking: Sequence[Sequence[str]]
) -> list[tuple[tuple[str, ...], list[Encoder]]]:
    """The pictures that are missing, with the encoders that lack just these: they share one decoding of each.

    An encoder that is there twice, under two names, is there once.
    """
    groups: dict[tuple[str, ...], dict[EncoderIdentity, Encoder]] = {}
    for encoder, missing in zip(encoders, lacking, strict=True):
        if missing:
            groups.setdefault(tuple(missing), {}).setdefault(encoder.identity, encoder)
    return [(missing, list(group.values())) for missing, group in groups.items()]


def _say_encoded(number: int, encoders: Sequence[Encoder], seconds: float) -> None:
    names = ", ".join(encoder.identity.encoder for encoder in encoders)
    print(
        f"artkv: encoded {number} pictures with {names} in {seconds:.1f} s, {number / seconds:.1f} a second",
        file=sys.stderr,
        flush=True,
    )


def verify_store(folder: Path, world: World) -> int:
    """Reads every record and compares it with its checksum, the ranks sharing the shards; returns their number.

    Raises `UserError` that names every damaged file, or says that there is no cache.
    """

    def check_share() -> int:
        paths = shard_paths(folder)[world.rank :: world.size]
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
        if not check_root(folder):
            raise UserError(
                f"frozen.feature_cache = {folder}: holds no feature cache, and nothing to verify; name the folder of "
                "one, or make it with artkv cache"
            )

    world.together(check_there)
    return sum(world.gather(world.together(check_share)))


def check_cache(settings: CacheSettings, world: World) -> None:
    """Raises `UserError` with the reason why the cache cannot be used, if it cannot; its records are not read."""
    _open(settings, world)


def _open(settings: CacheSettings, world: World) -> list[tuple[Encoder, FeatureStore]]:
    """The encoders whose features are wanted, each with what the folder holds of it."""
    return [(encoder, open_store(settings.folder, encoder.identity)) for encoder in settings.open_encoders(world)]


def _begin(folder: Path, encoders: Sequence[Encoder]) -> None:
    """Makes what is missing of the folders."""
    try:
        for encoder in encoders:
            create_store(folder, encoder.identity)
    except OSError as error:
        raise UserError(
            f"frozen.feature_cache = {folder}: cannot be written ({error.strerror}); give another"
        ) from None
    check_root(folder)


def _open_complete(folder: Path, identity: EncoderIdentity, wanted: set[str]) -> FeatureStore:
    """The store with all that rank 0 found in it or the ranks have written, as soon as this host sees it."""
    until = time.monotonic() + SEEN_WITHIN_SECONDS
    while True:
        store = open_store(folder, identity)
        lacking = wanted - store.place_of.keys()
        if not lacking:
            return store
        if time.monotonic() > until:
            raise UserError(
                f"frozen.feature_cache = {folder}: features of {len(lacking)} pictures are there for other "
                "ranks and not seen here; give a folder that all hosts share"
            )
        time.sleep(1.0)


def _write_down(folder: Path, stores: Sequence[FeatureStore], memo: PictureMemo) -> None:
    try:
        remove_abandoned(folder)
        for store in {store.folder: store for store in stores}.values():
            remove_abandoned(store.folder)
            remove_abandoned(store.folder / SHARDS)
            store.write_index()
        memo.save()
    except (OSError, UserError):
        return  # a folder that is read-only or full now: the next start hashes and reads headers again
