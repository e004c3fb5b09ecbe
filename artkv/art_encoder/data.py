"""Styles and pictures for the art encoder: reading, checking, splitting, and the order of training.

Everything random here is a pure function of (seed, epoch), and of the draw for augmentation, so that neither
the number of worker processes nor a stop and resume changes what is drawn.
"""

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from artkv.art_encoder.timm_parts import PictureTransform
from artkv.datasets.columns import PathColumn
from artkv.datasets.pictures import central_part, open_picture, picture_damage
from artkv.datasets.problems import Problem, format_problems, quoted
from artkv.datasets.records import read_records
from artkv.errors import UserError
from artkv.reading import printable

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Picture:
    """A picture and its style.

    name: its path relative to the data, which stays when the data are moved.
    place: where it is named, for messages: the folder, or the CSV's line as FILE:LINE.
    """

    path: Path
    name: str
    style: str
    place: str


@dataclass(frozen=True)
class StyleData:
    """The two sets of pictures; `classes` are the styles of the training set, sorted."""

    classes: tuple[str, ...]
    training: tuple[Picture, ...]
    validation: tuple[Picture, ...]

    def digest(self) -> str:
        """A SHA-256 of styles, names and split: equal for the same data in another folder."""
        hashed = hashlib.sha256(repr(self.classes).encode())
        for part in (self.training, self.validation):
            hashed.update(repr([(picture.name, picture.style) for picture in part]).encode())
        return hashed.hexdigest()


def read_style_data(
    data: Path, image_root: Path | None, validation: Path | None, validation_fraction: float, seed: int
) -> StyleData:
    """Reads style folders or a CSV, splits off a stratified validation set where none is given.

    The pictures are not opened; that is for `check_pictures`. Raises one UserError that lists every problem.
    """
    problems: list[str] = []
    if image_root is not None and all(os.path.isdir(source) for source in (data, validation) if source is not None):
        problems.append(f"--image-root {printable(image_root)}: is for a CSV, and {data} is a folder; leave it out")
    pictures = _read_pictures(data, image_root, problems)
    classes = tuple(sorted({picture.style for picture in pictures}))
    if pictures and len(classes) < 2:
        problems.append(f"{data}: has only the style {classes[0]!r}; a classifier needs at least 2")
    if classes and set(map(str.lower, classes)) <= _SPLIT_NAMES:
        problems.append(
            f"{data}: holds {', '.join(classes)}, which are no styles; name the folder of training styles as the "
            "data and the other with --validation"
        )
    if validation is None:
        training, held_out = _split(pictures, validation_fraction, seed, problems)
    else:
        training, held_out = pictures, _read_pictures(validation, image_root, problems)
        trained = {os.path.realpath(picture.path) for picture in training}
        for picture in held_out:
            if picture.style not in classes:
                problems.append(
                    f"{picture.place}: {printable(picture.name)}: the style {picture.style!r} does not occur in {data}"
                )
            if os.path.realpath(picture.path) in trained:
                problems.append(
                    f"{picture.place}: {printable(picture.name)} is also a training picture; keep it in one set"
                )
    if problems:
        raise _data_error(problems)
    return StyleData(classes, tuple(training), tuple(held_out))


def check_pictures(pictures: Sequence[Picture], memory: Path) -> None:
    """Decodes every picture once, so that a damaged one stops the training before it starts.

    `memory` is a file that records the last set found whole, by path, size and time: it is not decoded again.
    Raises one UserError that lists every picture which cannot be read.
    """
    hashed = hashlib.sha256()
    for picture in pictures:
        try:
            status = picture.path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except (OSError, ValueError):  # the latter for a NUL character
            state = "missing"
        hashed.update(f"{picture.path}\0{state}\n".encode("utf-8", "surrogateescape"))
    if memory.is_file() and memory.read_text() == hashed.hexdigest():
        return
    # decoders release the interpreter's lock; more threads would only hold more pictures in memory
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = tqdm(
            pool.map(_picture_problem, pictures),
            total=len(pictures),
            desc="checking pictures",
            unit="picture",
            disable=None,
        )
        problems = [problem for problem in found if problem]
    if problems:
        raise _data_error(problems)
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(hashed.hexdigest())


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """Transformed pictures and the indices of their styles.

    The key is a picture's index, or (index, seed): the transform's random numbers then depend on that seed alone.
    """

    def __init__(self, pictures: Sequence[Picture], classes: Sequence[str], transform: PictureTransform) -> None:
        index = {style: number for number, style in enumerate(classes)}
        self.paths = PathColumn(picture.path for picture in pictures)
        self.styles = np.array([index[picture.style] for picture in pictures])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key if isinstance(key, tuple) else (key, 0)
        picture = central_part(open_picture(self.paths[index]))
        with _own_random_numbers(seed):
            return self.transform(picture), int(self.styles[index])


class BalancedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, augmentation seed) of one epoch, drawn evenly over styles; set `epoch` before iterating.

    A style with n pictures gets a share of the epoch in proportion to n^(1 - balance): equal shares at 1. Within a
    style no picture comes again before all others have come. Every batch is full, as BatchNorm and mixup want it.
    """

    def __init__(self, styles: NDArray[np.int64], batch_size: int, balance: float, seed: int) -> None:
        self.styles = styles
        self.batch_size = batch_size
        self.balance = balance
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, -(-len(self.styles) // self.batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order()
        seeds = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(len(order))
        for start in range(0, len(order), self.batch_size):
            stop = start + self.batch_size
            yield list(zip(order[start:stop].tolist(), seeds[start:stop].tolist(), strict=True))

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


def _read_pictures(source: Path, image_root: Path | None, problems: list[str]) -> list[Picture]:
    if os.path.isdir(source):
        pictures = _read_style_folders(source, problems)
    elif os.path.lexists(source):
        pictures = _read_csv(source, image_root or source.parent, problems)
    else:
        problems.append(
            f"{printable(source)}: does not exist; give a folder of style folders or a CSV with columns image, style"
        )
        return []
    if not pictures and not problems:
        problems.append(f"{source}: names no pictures")
    return pictures


def _read_style_folders(root: Path, problems: list[str]) -> list[Picture]:
    """The pictures of root/STYLE/, sub-folders included; hidden files and files of other kinds are left out."""
    pictures = []
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        problems.append(f"{printable(root)}: cannot be listed ({error.strerror}); give a folder that may be read")
        return []
    if not folders:
        problems.append(f"{root}: holds no folders; it must hold one folder of pictures for each style")
    for folder in folders:
        files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        )
        if not files:
            problems.append(
                f"{printable(folder)}: the style {folder.name!r} has no pictures; add some or remove the folder"
            )
        pictures += [Picture(path, str(path.relative_to(root)), folder.name, printable(folder)) for path in files]
    return pictures


def _read_csv(file: Path, image_root: Path, problems: list[str]) -> list[Picture]:
    """The rows of a CSV with columns image and style; other columns are left out."""
    pictures: list[Picture] = []
    first_line: dict[str, int] = {}
    try:
        content = read_records(file, required=("image", "style"))
    except UserError as error:
        problems.append(str(error))
        return []
    found = list(content.problems)
    for record in content.records if {"image", "style"} <= set(content.columns) else ():
        image, style = record.cells["image"], record.cells["style"]
        wrong = None
        if not image or not style:
            wrong = f"empty {'style' if image else 'image'}; fill it in or remove the row"
        elif os.path.isabs(image) or os.pardir in Path(image).parts:
            wrong = f"picture {quoted(image)} lies outside {printable(image_root)}; give its path below that folder"
        elif first_line.setdefault(image, record.line) != record.line:
            wrong = f"{quoted(image)} is named in line {first_line[image]} already; keep one of them"
        if wrong is None:
            place = f"{printable(file)}:{record.line}"
            pictures.append(Picture(image_root / image, image, style, place))
        else:
            found.append(Problem(file, record.line, wrong))
    problems += [str(problem) for problem in sorted(found, key=lambda problem: problem.line)]
    return pictures


def _split(
    pictures: Sequence[Picture], fraction: float, seed: int, problems: list[str]
) -> tuple[list[Picture], list[Picture]]:
    """Splits off a part of each style, at least one picture; the rest keeps its order."""
    by_style: dict[str, list[Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: picture.name):
        by_style[picture.style].append(picture)
    held_out: set[str] = set()
    for number, (style, members) in enumerate(sorted(by_style.items())):
        if len(members) < 2:
            problems.append(
                f"{members[0].place}: {printable(members[0].name)} is the only picture of the style {style!r}, which "
                "needs at least 2: one to train on and one to validate on"
            )
            continue
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        chosen = np.random.default_rng([seed, number]).permutation(len(members))[:count]
        held_out.update(members[index].name for index in chosen)
    return (
        [picture for picture in pictures if picture.name not in held_out],
        [picture for picture in pictures if picture.name in held_out],
    )


def _picture_problem(picture: Picture) -> str | None:
    damage = picture_damage(picture.path)
    return damage and f"{picture.place}: {damage}"


def _data_error(problems: Sequence[str]) -> UserError:
    told = list(dict.fromkeys(problems))
    noun = "problem" if len(told) == 1 else "problems"
    listed = format_problems(told).replace("\n", "\n  ")
    return UserError(f"the art encoder's data have {len(told):,} {noun}:\n  {listed}")
