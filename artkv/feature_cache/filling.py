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
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from artkv.batch import EncoderIdentity, PaintingFeatures, PaintingViews
from artkv.datasets.pictures import PaintingTransform
from artkv.distributed import World
from artkv.errors import UserError
from artkv.feature_cache.contents import BLANK
from artkv.feature_cache.shards import RECORDS_A_SHARD, write_shard
from artkv.reading import read_regular

# Part of the format: another number rounds differently.
RECORDS_A_BATCH = 16
# Pictures decoded ahead of the encoders, 1.7 MB each at 224 and 300 pixels.
_DECODED_AHEAD = 4 * RECORDS_A_BATCH
_MAX_DECODERS = 16

_Views = tuple[Tensor, Tensor]


class Encoders(Protocol):
    """What features come from.

    device: where it computes. transform: makes the views that it wants of a picture. identity: what its features
    depend on.
    """

    device: torch.device
    transform: PaintingTransform
    identity: EncoderIdentity

    def load(self, world: World) -> None:
        """Reads the weights; all ranks call it alike."""

    def encode(self, views: PaintingViews) -> PaintingFeatures:
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
    shard_folder: Path,
    fingerprint: str,
    missing: Mapping[str, Path | None],
    encoders: Encoders,
    decoders: int,
    world: World,
    after_each_batch: Callable[[bool], None] = lambda has_shards: None,
) -> None:
    """Computes and writes the records of the pictures that are `missing`; called on all ranks with the same.

    missing: for each picture's SHA-256 a file with these bytes, None for the blank one. decoders: threads of a rank, or
    more; see `decoding_threads`. Ranks meet after each batch, so that an error of one ends all of them soon, and none
    waits longer than for a batch: 160 s at a slow CPU's 10 s a picture. Then `after_each_batch` is called on all of
    them, and told whether there are shards already, which last.
    """
    world.together(lambda: encoders.load(world))
    decoders = decoding_threads(decoders, world)
    shards = plan_shards(list(missing))
    own = shards[world.rank :: world.size]
    rounds = -(-len(shards) // world.size)
    meetings = -(-RECORDS_A_SHARD // RECORDS_A_BATCH) + 1  # a shard's batches, and its writing
    bar = tqdm(total=len(missing), desc="encoding pictures", unit="picture", disable=None if world.is_main else True)
    with bar, ThreadPoolExecutor(decoders) as pool:
        views = _decoded_ahead(pool, [content for shard in own for content in shard], missing, encoders.transform)

        def make(contents: list[str]) -> Iterator[None]:
            images: list[Tensor] = []
            arts: list[Tensor] = []
            for image, art in _encode(views, len(contents), encoders, lambda: _advance(bar, world.size)):
                images.append(image)
                if art is not None:
                    arts.append(art)
                yield
            write_shard(shard_folder, fingerprint, contents, torch.cat(images), torch.cat(arts) if arts else None)

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
    views: Iterator[_Views], number: int, encoders: Encoders, advance: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Features of the next pictures, on the CPU, in batches of one shape whose last is filled up with zeros."""
    for start in range(0, number, RECORDS_A_BATCH):
        count = min(RECORDS_A_BATCH, number - start)
        batch: list[_Views] = []
        for _ in range(count):
            batch.append(next(views))
            advance()
        batch += [(torch.zeros_like(batch[0][0]), torch.zeros_like(batch[0][1]))] * (RECORDS_A_BATCH - count)
        stacked = PaintingViews(torch.stack([v for v, _ in batch]), torch.stack([e for _, e in batch]))
        features = encoders.encode(stacked.to(encoders.device))
        art = features.art_features
        yield features.image_features[:count].cpu(), None if art is None else art[:count].cpu()


def _decoded_ahead(
    pool: ThreadPoolExecutor, contents: Sequence[str], path_of: Mapping[str, Path | None], transform: PaintingTransform
) -> Iterator[_Views]:
    waiting: deque[Future[_Views]] = deque()
    for content in contents:
        waiting.append(pool.submit(_views, content, path_of, transform))
        if len(waiting) > _DECODED_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _views(content: str, path_of: Mapping[str, Path | None], transform: PaintingTransform) -> _Views:
    if content == BLANK:
        return transform.blank()
    path = path_of[content]
    assert path is not None
    try:
        data = read_regular(path, path.stat().st_size)
    except OSError as error:
        raise UserError(f"picture {path}: cannot be read ({error.strerror}); put it back") from None
    if hashlib.sha256(data).hexdigest() != content:
        raise UserError(f"picture {path}: changed while it was being cached; start again")
    return transform.views(path, data)


def _advance(bar: tqdm, world_size: int) -> None:
    """Shows all ranks' pictures by this rank's, which has its even share of them."""
    bar.update(min(world_size, bar.total - bar.n))
