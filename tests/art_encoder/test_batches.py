"""Which pictures are drawn, in which order, and by which rank."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from artkv.art_encoder.batches import UNLABELLED, BalancedBatches, KeptBatches, PictureDataset, part_of_rank
from artkv.art_encoder.data import Head, Picture
from artkv.art_encoder.timm_parts import target_mixer
from artkv.distributed import World


def test_every_style_is_drawn_equally_often() -> None:
    styles = np.array([0] * 50 + [1] * 5 + [2] * 9)
    batches = BalancedBatches(styles, 8, balance=1.0, seed=3)
    order = batches.order()
    assert len(order) == 64 == 8 * len(batches)
    assert sorted(Counter(styles[order]).values()) == [21, 21, 22]
    drawn = Counter(order.tolist())
    assert max(drawn[index] for index in range(50)) == 1  # none again before all others have come
    assert {drawn[index] for index in range(50, 55)} <= {4, 5}
    assert len({seed for batch in batches for _, seed in batch}) == 64  # each draw has its own augmentation

    assert batches.order().tolist() == order.tolist()
    batches.epoch = 1
    assert batches.order().tolist() != order.tolist()
    natural = styles[BalancedBatches(styles, 8, balance=0.0, seed=3).order()]
    assert Counter(natural) == {0: 50, 1: 5, 2: 9}


def rank(number: int, size: int) -> World:
    return World(number, number, size, torch.device("cpu"))


def test_ranks_share_the_batches_that_one_alone_has() -> None:
    styles = np.array([0] * 50 + [1] * 5 + [2] * 9)
    alone = list(BalancedBatches(styles, 16, 1.0, 3))
    shared = [list(BalancedBatches(styles, 16, 1.0, 3, rank(number, 4))) for number in range(4)]
    for batch, *parts in zip(alone, *shared, strict=True):
        assert [len(part) for part in parts] == [4] * 4
        assert sorted(batch) == sorted(key for part in parts for key in part)
    later = BalancedBatches(styles, 16, 1.0, 3, rank(1, 4))
    later.first_batch = 2
    assert list(later) == shared[1][2:]
    assert list(BalancedBatches(styles, 16, 1.0, 3, rank(0, 1))) == alone


def test_ranks_mix_the_pictures_that_one_alone_mixes() -> None:
    pixels = torch.rand(12, 3, 8, 8)
    classes = torch.arange(12)
    mixer = target_mixer(12, 0.1, 0.5, 0.5, 1.0)
    np.random.seed(7)
    whole, targets = mixer(pixels.clone(), classes)
    for number in range(3):
        own = torch.tensor(part_of_rank(list(range(12)), number, 3))
        np.random.seed(7)
        part, part_targets = mixer(pixels[own], classes[own])
        assert torch.equal(part, whole[own])
        assert torch.equal(part_targets, targets[own])
    assert part_of_rank([0, 1, 2, 3, 4, 5], 1, 2) == [3, 4, 5]  # an odd share cannot be mixed


def test_a_missing_label_is_a_class_of_its_own_to_draw_by() -> None:
    heads = [Head("style", ("a", "b")), Head("genre", ("x", "y"))]
    pictures = [
        Picture(Path(name), name, labels, "")
        for name, labels in [("0", ("b", None)), ("1", (None, "y")), ("2", ("a", "x"))]
    ]
    dataset = PictureDataset(pictures, heads, lambda picture: torch.zeros(()))
    assert dataset.labels.tolist() == [[1, UNLABELLED], [UNLABELLED, 1], [0, 0]]
    assert dataset.drawn_by.tolist() == [1, 2, 0]


class Counted(Dataset[tuple[Tensor, Tensor]]):
    """Five pictures of 48 bytes, and how often one was made."""

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.made += 1
        return torch.full((3, 2, 2), float(index)), torch.tensor(index)


def test_batches_that_are_always_the_same_are_made_once_where_there_is_room() -> None:
    for most_bytes, made in ((5 * 48, 5), (5 * 48 - 1, 15)):
        pictures = Counted()
        loader = DataLoader(pictures, batch_size=2)
        batches = KeptBatches(loader, most_bytes)
        for _ in range(3):
            pixels, labels = zip(*batches, strict=True)
            assert torch.equal(torch.cat(labels), torch.arange(5))
            assert torch.equal(torch.cat(pixels)[:, 0, 0, 0], torch.arange(5.0))
        assert pictures.made == made


def test_batches_of_a_pass_that_was_broken_off_are_not_taken_for_all() -> None:
    batches = KeptBatches(DataLoader(Counted(), batch_size=2))
    next(iter(batches))
    assert sum(len(labels) for _, labels in batches) == 5
