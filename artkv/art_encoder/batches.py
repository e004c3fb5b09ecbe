"""The pictures of the art encoder's training as tensors, and the order in which they are drawn.

Everything random here is a pure function of (seed, epoch), and of the draw for augmentation, so that neither the
number of worker processes or ranks nor a stop and resume changes what is drawn.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from artkv.art_encoder.data import Head, Picture
from artkv.art_encoder.timm_parts import PictureTransform
from artkv.datasets.columns import PathColumn
from artkv.datasets.pictures import central_part, open_picture
from artkv.distributed import World

T = TypeVar("T")

UNLABELLED = -1


class PictureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Transformed pictures and the indices of their labels, -1 where there is none: () for one head, (heads,) for more.

    The key is a picture's index, or (index, seed): the transform's random numbers then depend on that seed alone.
    """

    def __init__(self, pictures: Sequence[Picture], heads: Sequence[Head], transform: PictureTransform) -> None:
        numbers = [{label: number for number, label in enumerate(head.classes)} for head in heads]
        self.paths = PathColumn(picture.path for picture in pictures)
        self.labels = np.array(
            [
                [
                    UNLABELLED if label is None else known[label]
                    for known, label in zip(numbers, one.labels, strict=True)
                ]
                for one in pictures
            ],
            dtype=np.int64,
        ).reshape(len(pictures), len(heads))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        picture = central_part(open_picture(self.paths[index]))
        labels = torch.from_numpy(self.labels[index])
        with _own_random_numbers(seed):
            return self.transform(picture), labels[0] if len(labels) == 1 else labels

    @property
    def drawn_by(self) -> NDArray[np.int64]:
        """What `BalancedBatches` draws evenly over: the first head's classes, and no label as one more."""
        first = self.labels[:, 0]
        return np.where(first == UNLABELLED, first.max() + 1, first)


class KeptBatches:
    """The batches of a loader that gives the same ones each time: made once, and kept where they are not too many.

    most_bytes: of all their pixels; the batches of a larger set are made anew each time.
    """

    def __init__(self, loader: DataLoader[tuple[Tensor, Tensor]], most_bytes: int = 2**28) -> None:
        self._loader = loader
        self._most_bytes = most_bytes
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Tensor, Tensor]] = []
        left = self._most_bytes
        for pixels, labels in self._loader:
            left -= pixels.nbytes
            if left >= 0:
                kept.append((pixels, labels))
            else:
                kept.clear()
            yield pixels, labels
        if left >= 0:
            self._kept = kept


class BalancedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, augmentation seed) of one epoch, drawn evenly over styles; set `epoch` before iterating.

    A style with n pictures gets a share of the epoch in proportion to n^(1 - balance): equal shares at 1. Within a
    style no picture comes again before all others have come. Every batch is full, as BatchNorm and mixup want it.

    batch_size: pictures of all ranks. With a `world` each rank gets its part of the batches, which are the same for any
    number of ranks. first_batch: the first one of the epoch that is still to come.
    """

    def __init__(
        self, styles: NDArray[np.int64], batch_size: int, balance: float, seed: int, world: World | None = None
    ) -> None:
        self.styles = styles
        self.batch_size = batch_size
        self.balance = balance
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0
        self._rank, self._size = (world.rank, world.size) if world is not None else (0, 1)

    def __len__(self) -> int:
        return max(1, -(-len(self.styles) // self.batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order()
        seeds = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(len(order))
        for start in range(self.first_batch * self.batch_size, len(order), self.batch_size):
            stop = start + self.batch_size
            batch = list(zip(order[start:stop].tolist(), seeds[start:stop].tolist(), strict=True))
            yield part_of_rank(batch, self._rank, self._size)

    def order(self) -> NDArray[np.int64]:
        """The indices of the epoch's pictures, a whole number of batches."""
        rng = np.random.default_rng([self.seed, self.epoch, 0])
        total = len(self) * self.batch_size
        counts = np.bincount(self.styles)
        shares = np.where(counts > 0, counts.astype(np.float64) ** (1.0 - self.balance), 0.0)
        exact = total * shares / shares.sum()
        quotas = np.floor(exact).astype(np.int64)
        # what rounding leaves goes to the largest remainders, in a random order where they are equal
        by_remainder = np.lexsort((rng.random(len(counts)), -np.round(exact - quotas, 9)))
        quotas[by_remainder[: total - quotas.sum()]] += 1
        drawn = []
        for style, quota in enumerate(quotas):
            members = np.flatnonzero(self.styles == style)
            if quota:
                rounds = [rng.permutation(members) for _ in range(-(-int(quota) // len(members)))]
                drawn.append(np.concatenate(rounds)[:quota])
        return rng.permutation(np.concatenate(drawn))


def part_of_rank(batch: list[T], rank: int, size: int) -> list[T]:
    """The part of a batch that one of `size` ranks trains on, all of the same length.

    mixup and cutmix blend a picture with the one as far from the batch's end as it is from the beginning. So a rank
    gets both of such a pair, in places from which its own mixing pairs them again.
    """
    own = len(batch) // size
    if own % 2:
        return batch[rank * own : (rank + 1) * own]
    half = own // 2
    end = len(batch) - rank * half
    return batch[rank * half : (rank + 1) * half] + batch[end - half : end]


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and PyTorch's CPU generators, all of which transforms use, and puts them back."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's generator too
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
