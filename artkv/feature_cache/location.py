"""Where the features are kept if nobody says: a folder of the user's cache, which outlives runs."""

import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from artkv.config.paths import user_cache
from artkv.distributed import World, single_process
from artkv.errors import UserError
from artkv.feature_cache import fingerprint
from artkv.feature_cache.contents import PictureMemo
from artkv.feature_cache.preparation import CacheSettings, decoded_before
from artkv.feature_cache.store import SHARDS, open_store
from artkv.reading import remedy_for

# Left free on the disk: as much again as the features take, and no more than this.
_MOST_LEFT_FREE_BYTES = 10 * 2**30
# How long a file of another host may take to be seen.
_SEEN_WITHIN_SECONDS = 10.0
_GB = 10**9


class Location(NamedTuple):
    """Where the features are kept, None for nowhere, and what is to be said of it."""

    folder: Path | None
    note: str


def features_root() -> Path:
    """The folder for caches of all formats: $ARTKV_CACHE, or artkv in the user's cache."""
    return user_cache() / "features"


def features_folder() -> Path:
    """The cache of whoever names no other, which all his runs share."""
    return features_root() / f"format-{fingerprint.FORMAT}"


def decoded_below(root: Path) -> Callable[[Path], bool]:
    """Tells the pictures that were decoded for any cache below `root` and have not changed since."""
    memories = [decoded_before(path.parent) for path in sorted(root.glob("*/pictures.json"))]
    return lambda path: any(is_known(path) for is_known in memories)


def choose_location(
    settings: CacheSettings, paths: Sequence[Path], record_bytes: Sequence[int], world: World
) -> Location:
    """`settings.folder` for these pictures, if it can be written, has room and all hosts see it.

    record_bytes: of a picture, for each encoder. Called on all ranks; rank 0 looks and decides for all, since the ranks
    fill and read one folder. Raises `UserError` for what is wrong with the encoders' files.
    """
    located = world.broadcast(world.on_main(lambda: _choose(settings, paths, record_bytes, world)))
    assert located is not None
    if located.folder is None or len(set(world.gather(socket.gethostname()))) == 1:
        return located
    return _seen_by_all(located, world)


def _choose(settings: CacheSettings, paths: Sequence[Path], record_bytes: Sequence[int], world: World) -> Location:
    folder = settings.folder
    encoders = settings.open_encoders(single_process(world.device))
    try:
        stores = [open_store(folder, encoder.identity) for encoder in encoders]
    except (UserError, PermissionError) as error:  # what is damaged ends the run: it is told how to be mended
        if not _is_of_permission(error):
            raise
        reason = str(error)
        if isinstance(error, PermissionError):
            reason = f"{error.filename}: cannot be read ({error.strerror}); {remedy_for(error, '')}"
        return Location(None, f"features not cached: {reason}, or {_REMEDY}")
    memo = PictureMemo(folder / "pictures.json")
    known = [memo.get(path) for path in set(paths)]
    lacking = [sum(found is None or found[1] not in store.place_of for found in known) for store in stores]
    num_missing = max(lacking)
    if not num_missing:
        return Location(folder, f"features of pictures in {folder}")
    # And the blank one.
    needed = sum((number + 1) * size for number, size in zip(lacking, record_bytes, strict=True) if number)
    what = f"features of {num_missing} pictures, {needed / _GB:.2f} GB"
    written = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of a cache that several users share, an encoder's part may be one's who lets the others only read.
        parts = [_nearest(store.folder / SHARDS) for store, number in zip(stores, lacking, strict=True) if number]
        for written in dict.fromkeys([folder, *parts]):
            _probe(written).unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Location(None, f"{what}, not cached: {written} cannot be written ({error.strerror}); {_REMEDY}")
    wanted = needed + min(needed, _MOST_LEFT_FREE_BYTES)
    if free < wanted:
        return Location(
            None,
            f"{what}, not cached: {folder} has {free / _GB:.2f} GB free, {wanted / _GB:.2f} are wanted; {_REMEDY}",
        )
    return Location(folder, f"{what}, cached in {folder}")


_REMEDY = "set ARTKV_CACHE or frozen.feature_cache to a folder with room"


def _is_of_permission(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised for, is that this user may not read something."""
    while error is not None and not isinstance(error, PermissionError):
        error = error.__cause__ or error.__context__
    return error is not None


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _probe(folder: Path) -> Path:
    path = folder / f".probe.{secrets.token_hex(6)}.tmp"
    path.touch()
    return path


def _seen_by_all(located: Location, world: World) -> Location:
    """The same, or nowhere if a host does not see what rank 0 writes there; a folder that is only read is trusted."""
    folder = located.folder
    assert folder is not None

    def leave() -> Path | None:
        try:
            return _probe(folder)
        except OSError:
            return None

    probe = world.broadcast(world.on_main(leave))
    until = time.monotonic() + _SEEN_WITHIN_SECONDS
    looked_for = folder / "cache.json" if probe is None else probe
    while not (is_seen := looked_for.is_file()) and time.monotonic() < until:
        time.sleep(0.2)
    blind = sorted({host for host, seen in world.gather((socket.gethostname(), is_seen)) if not seen})
    if probe is not None:
        world.on_main(lambda: probe.unlink(missing_ok=True))
    if not blind:
        return located
    return Location(None, f"features not cached: {folder} is not seen on {', '.join(blind)}; {_REMEDY}")
