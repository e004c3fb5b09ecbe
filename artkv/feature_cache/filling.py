"""Computes the features that a cache lacks, the ranks sharing its shards.

A record does not depend on who makes it: pictures are sorted by content and cut into shards, a shard is encoded in
batches of one shape, and a rank makes whole shards. So the files are the same from any number of ranks, in one go
or after a kill; kernels may round a picture differently in a batch of another shape or at another place in it.
"""

import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from artkv.batch import EncoderIdentity
from artkv.datasets.decoding import decoded
from artkv.datasets.picture_files import open_picture_file
from artkv.datasets.pictures import View, blank_views, views_of
from artkv.distributed import World
from artkv.errors import UserError
from artkv.feature_cache import fingerprint
from artkv.feature_cache.contents import BLANK
from artkv.feature_cache.shards import RECORDS_A_SHARD, write_shard
from artkv.feature_cache.store import SHARDS, store_folder
from artkv.reading import remedy_for

# Part of the format: another number rounds differently.
RECORDS_A_BATCH = 16
# Pictures decoded ahead of the encoders, 1.7 MB each at 224 and 300 pixels.
_DECODED_AHEAD = 4 * RECORDS_A_BATCH
_MAX_DECODERS = 16

_Views = tuple[Tensor, ...]


@dataclass(frozen=True)
class PictureReading:
    """How pictures are decoded: by how many threads of a rank, or more, see `decoding_threads`; of how many pixels."""

    decoders: int
    max_pixels: int


class Encoder(Protocol):
    """What features come from.

    device: where it computes. view: what it sees of a picture. identity: what its features depend on.
    """

    device: torch.device
    view: View
    identity: EncoderIdentity

    def load(self, world: World) -> None:
        """Reads the weights; all ranks call it alike."""

    def encode(self, pixels_I3EE: Tensor) -> Tensor:
        """The features of paintings whose views are on the device."""


def plan_shards(missing: Sequence[str]) -> list[list[str]]:
    """Which pictures make up which shard; a shard that is complete leaves the others as they would have been."""
    ordered = sorted(missing)
    return [ordered[start : start + RECORDS_A_SHARD] for start in range(0, len(ordered), RECORDS_A_SHARD)]


def decoding_threads(wanted: int, world: World) -> int:
    """Threads of a rank that decode: as many as wanted, and no fewer than its share of the cores, up to 16.

    Called on all ranks. Unlike in training nothing else needs the cores meanwhile, and encoders wait for pictures.
    """
    cores = os.sched_getaffinity(0)
    host = socket.gethostname()
    places = world.gather((host, cores))
    num_sharing = sum(other == host and not cores.isdisjoint(theirs) for other, theirs in places)
    return max(1, wanted, min(_MAX_DECODERS, len(cores) // num_sharing))


def fill(
    root: Path,
    encoders: Sequence[Encoder],
    missing: Mapping[str, Path | None],
    pictures: PictureReading,
    world: World,
    after_each_batch: Callable[[bool], None] = lambda has_shards: None,
) -> None:
    """Computes and writes the records of the pictures that are `missing` of each encoder; called on all ranks alike.

    missing: for each picture's SHA-256 a file with these bytes, None for the blank one. Ranks meet after each batch, so
    that an error of one ends all of them soon, and none waits longer than for a batch: 160 s at a slow CPU's 10 s a
    picture. Then `after_each_batch` is called on all of them, and told whether there are shards already, which last.
    """
    for encoder in encoders:
        world.together(lambda encoder=encoder: encoder.load(world))  # type: ignore[misc]
    decoders = decoding_threads(pictures.decoders, world)
    shards = plan_shards(list(missing))
    own = shards[world.rank :: world.size]
    rounds = -(-len(shards) // world.size)
    meetings = -(-RECORDS_A_SHARD // RECORDS_A_BATCH) + 1  # a shard's batches, and its writing
    bar = tqdm(total=len(missing), desc="encoding pictures", unit="picture", disable=None if world.is_main else True)
    with bar, ThreadPoolExecutor(decoders) as pool:
        transform = _Transform(tuple(encoder.view for encoder in encoders), pictures.max_pixels)
        views = _decoded_ahead(pool, [content for shard in own for content in shard], missing, transform)

        def make(contents: list[str]) -> Iterator[None]:
            made: list[list[Tensor]] = []
            for of_batch in _encode(views, len(contents), encoders, lambda: _advance(bar, world.size)):
                made.append(of_batch)
                yield
            for encoder, features in zip(encoders, zip(*made, strict=True), strict=True):
                kind = fingerprint.digest(encoder.identity)
                write_shard(store_folder(root, encoder.identity) / SHARDS, kind, contents, torch.cat(features))

        try:
            for number in range(rounds):
                making = make(own[number]) if number < len(own) else iter(())
                for meeting in range(meetings):
                    world.together(lambda making=making: next(making, None))  # type: ignore[misc]
                    after_each_batch(number > 0 or meeting == meetings - 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _encode(
    views: Iterator[_Views], number: int, encoders: Sequence[Encoder], advance: Callable[[], None]
) -> Iterator[list[Tensor]]:
    """Each encoder's features of the next pictures, on the CPU, in batches of one shape, the last filled with zeros."""
    for start in range(0, number, RECORDS_A_BATCH):
        count = min(RECORDS_A_BATCH, number - start)
        batch: list[_Views] = []
        for _ in range(count):
            batch.append(next(views))
            advance()
        made = []
        for encoder, of_encoder in zip(encoders, zip(*batch, strict=True), strict=True):
            filled_up = [*of_encoder, *[torch.zeros_like(of_encoder[0])] * (RECORDS_A_BATCH - count)]
            made.append(encoder.encode(torch.stack(filled_up).to(encoder.device))[:count].cpu())
        yield made


def _decoded_ahead(
    pool: ThreadPoolExecutor, contents: Sequence[str], path_of: Mapping[str, Path | None], transform: "_Transform"
) -> Iterator[_Views]:
    waiting: deque[Future[_Views]] = deque()
    for content in contents:
        waiting.append(pool.submit(_views, content, path_of, transform))
        if len(waiting) > _DECODED_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True)
class _Transform:
    views: tuple[View, ...]
    max_pixels: int


def _views(content: str, path_of: Mapping[str, Path | None], transform: _Transform) -> _Views:
    if content == BLANK:
        return blank_views(transform.views)
    path = path_of[content]
    assert path is not None
    try:
        with open_picture_file(path) as opened:
            data = opened.file.read(opened.num_bytes)
    except OSError as error:
        remedy = remedy_for(error, "put it back")
        raise UserError(f"picture {path}: cannot be read ({error.strerror}); {remedy}") from None
    if hashlib.sha256(data).hexdigest() != content:
        raise UserError(f"picture {path}: changed while it was being cached; start again")
    with decoded(path, data, transform.max_pixels) as picture:
        return views_of(picture, transform.views)


def _advance(bar: tqdm, world_size: int) -> None:
    """Shows all ranks' pictures by this rank's, which has its even share of them."""
    bar.update(min(world_size, bar.total - bar.n))
