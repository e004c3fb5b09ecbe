"""Pictures and their labels for the art encoder: reading, checking, and splitting."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from artkv.art_encoder.arguments import AUTO_HEADS, STYLE_ALONE
from artkv.datasets.pictures import picture_damage
from artkv.datasets.problems import Problem, format_problems, quoted
from artkv.datasets.records import read_records
from artkv.errors import UserError
from artkv.reading import printable, remedy_for

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Picture:
    """A picture and its labels, one for each head; None where it has none.

    name: its path relative to the data, which stays when the data are moved.
    place: where it is named, for messages: the folder, or the CSV's line as FILE:LINE.
    """

    path: Path
    name: str
    labels: tuple[str | None, ...]
    place: str


@dataclass(frozen=True)
class Head:
    """What one classifier tells apart: `classes`, the labels of the training set in the column `name`, sorted."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class StyleData:
    """The two sets of pictures, and the heads that they have labels for; usually styles alone."""

    heads: tuple[Head, ...]
    training: tuple[Picture, ...]
    validation: tuple[Picture, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the first head."""
        return self.heads[0].classes

    @property
    def is_of_styles_alone(self) -> bool:
        """Whether the one head is `style`."""
        return tuple(head.name for head in self.heads) == STYLE_ALONE

    def digest(self) -> str:
        """A SHA-256 of labels, names and split: equal for the same data in another folder."""
        alone = self.is_of_styles_alone
        what = self.classes if alone else [(head.name, head.classes) for head in self.heads]
        hashed = hashlib.sha256(repr(what).encode())
        for part in (self.training, self.validation):
            labelled = [(picture.name, picture.labels[0] if alone else picture.labels) for picture in part]
            hashed.update(repr(labelled).encode())
        return hashed.hexdigest()


def read_style_data(
    data: Path,
    image_root: Path | None,
    validation: Path | None,
    validation_fraction: float,
    seed: int,
    heads: tuple[str, ...] | None = STYLE_ALONE,
) -> StyleData:
    """Reads style folders or a CSV, splits off a stratified validation set where none is given.

    heads: the CSV's columns of labels; None: those of style, genre and artist that it has. The pictures are not opened;
    that is for `check_pictures`. Raises one UserError that lists every problem.
    """
    problems: list[str] = []
    if image_root is not None and all(os.path.isdir(source) for source in (data, validation) if source is not None):
        problems.append(f"--image-root {printable(image_root)}: is for a CSV, and {data} is a folder; leave it out")
    pictures, names = _read_pictures(data, image_root, heads, problems)
    found = tuple(
        Head(name, tuple(sorted({label for one in pictures if (label := one.labels[number]) is not None})))
        for number, name in enumerate(names)
    )
    if pictures:
        problems += [problem for head in found if (problem := _wrong_classes(head, data))]
    if validation is None:
        training, held_out = _split(pictures, names, validation_fraction, seed, problems)
    else:
        training, (held_out, _) = pictures, _read_pictures(validation, image_root, names, problems)
        problems += _validation_problems(found, training, held_out, data)
    for number, head in enumerate(found):
        if not problems and all(picture.labels[number] is None for picture in held_out):
            where = validation or data
            problems.append(
                f"{where}: no picture to validate on has a label in the column {head.name}; label more, give others "
                f"with --validation, or leave {head.name} out of --heads"
            )
    if problems:
        raise _data_error(problems)
    return StyleData(found, tuple(training), tuple(held_out))


def _wrong_classes(head: Head, data: Path) -> str | None:
    """What is wrong with the labels that a head has to tell apart."""
    if not head.classes:
        return f"{data}: no row has a {head.name}; leave {head.name} out of --heads, or fill the column in"
    if len(head.classes) < 2:
        return f"{data}: has only the {head.name} {head.classes[0]!r}; a classifier needs at least 2"
    if head.name == "style" and set(map(str.lower, head.classes)) <= _SPLIT_NAMES:
        return (
            f"{data}: holds {', '.join(head.classes)}, which are no styles; name the folder of training styles as the "
            "data and the other with --validation"
        )
    return None


def _validation_problems(
    heads: Sequence[Head], training: Sequence[Picture], held_out: Sequence[Picture], data: Path
) -> list[str]:
    """What keeps a validation set of its own from telling what was learnt."""
    problems = []
    trained = {os.path.realpath(picture.path) for picture in training}
    known = [set(head.classes) for head in heads]
    for picture in held_out:
        told = f"{picture.place}: {printable(picture.name)}"
        for head, classes, label in zip(heads, known, picture.labels, strict=True):
            if label is not None and label not in classes:
                problems.append(f"{told}: the {head.name} {label!r} does not occur in {data}")
        if os.path.realpath(picture.path) in trained:
            problems.append(f"{told} is also a training picture; keep it in one set")
    return problems


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
    if memory.is_file() and memory.read_bytes() == hashed.hexdigest().encode():
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


def _read_pictures(
    source: Path, image_root: Path | None, heads: tuple[str, ...] | None, problems: list[str]
) -> tuple[list[Picture], tuple[str, ...]]:
    """The pictures of a source, and the heads that their labels are of."""
    columns = ", ".join(heads or STYLE_ALONE)
    if os.path.isdir(source):
        if heads not in (None, STYLE_ALONE):
            problems.append(
                f"--heads {columns}: {printable(source)} is a folder, whose folders are styles alone; give a CSV with "
                f"columns image, {columns}"
            )
            return [], heads
        pictures, heads = _read_style_folders(source, problems), STYLE_ALONE
    elif os.path.lexists(source):
        if image_root is not None and not os.path.isdir(image_root):
            what = "is no folder" if os.path.lexists(image_root) else "no such folder"
            problems.append(f"--image-root {printable(image_root)}: {what}; give the folder that holds the pictures")
            return [], heads or STYLE_ALONE
        pictures, heads = _read_csv(source, image_root or source.parent, heads, problems)
    else:
        problems.append(
            f"{printable(source)}: does not exist; give a folder of style folders or a CSV with columns image, "
            f"{columns}"
        )
        return [], heads or STYLE_ALONE
    if not pictures and not problems:
        problems.append(f"{source}: names no pictures")
    return pictures, heads


def _read_style_folders(root: Path, problems: list[str]) -> list[Picture]:
    """The pictures of root/STYLE/, sub-folders included; hidden files and files of other kinds are left out."""
    pictures = []
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        remedy = remedy_for(error, "give a folder that may be read")
        problems.append(f"{printable(root)}: cannot be listed ({error.strerror}); {remedy}")
        return []
    if not folders:
        problems.append(f"{root}: holds no folders; it must hold one folder of pictures for each style")
    for folder in folders:
        unread: list[OSError] = []
        places = [(place, names) for place, _, names in os.walk(folder, onerror=unread.append)]
        files = sorted(
            Path(place, name)
            for place, names in places
            for name in names
            if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")
        )
        problems += [
            f"{printable(error.filename)}: cannot be listed ({error.strerror}); {remedy_for(error, 'look at the disk')}"
            for error in unread
        ]
        if not files and not unread:
            problems.append(
                f"{printable(folder)}: the style {folder.name!r} has no pictures; add some or remove the folder"
            )
        pictures += [Picture(path, str(path.relative_to(root)), (folder.name,), printable(folder)) for path in files]
    return pictures


def _read_csv(
    file: Path, image_root: Path, heads: tuple[str, ...] | None, problems: list[str]
) -> tuple[list[Picture], tuple[str, ...]]:
    """The rows of a CSV with columns image and the heads' (None: those it has); other columns are left out."""
    pictures: list[Picture] = []
    first_line: dict[str, int] = {}
    try:
        content = read_records(file, ("image", *(heads or ())), AUTO_HEADS if heads is None else ())
    except UserError as error:
        problems.append(str(error))
        return [], heads or STYLE_ALONE
    found = list(content.problems)
    if heads is None:
        heads = tuple(name for name in AUTO_HEADS if name in content.columns)
        if not heads:
            found.append(Problem(file, 1, f"none of the columns {', '.join(AUTO_HEADS)}; add one, or name --heads"))
    for record in content.records if heads and {"image", *heads} <= set(content.columns) else ():
        image, labels = record.cells["image"], tuple(record.cells[name] or None for name in heads)
        wrong = None
        if not image:
            wrong = "empty image; fill it in or remove the row"
        elif not any(labels):
            wrong = f"empty {' and '.join(heads)}; fill {'it' if len(heads) == 1 else 'one'} in or remove the row"
        elif os.path.isabs(image) or os.pardir in Path(image).parts:
            wrong = f"picture {quoted(image)} lies outside {printable(image_root)}; give its path below that folder"
        elif first_line.setdefault(image, record.line) != record.line:
            wrong = f"{quoted(image)} is named in line {first_line[image]} already; keep one of them"
        if wrong is None:
            pictures.append(Picture(image_root / image, image, labels, f"{printable(file)}:{record.line}"))
        else:
            found.append(Problem(file, record.line, wrong))
    problems += [str(problem) for problem in sorted(found, key=lambda problem: problem.line)]
    return pictures, heads or STYLE_ALONE


def _split(
    pictures: Sequence[Picture], heads: Sequence[str], fraction: float, seed: int, problems: list[str]
) -> tuple[list[Picture], list[Picture]]:
    """Splits off a part of each class of the first head, at least one picture; the rest keeps its order.

    What has no label there is split as a class of its own. No other head loses the last picture of a class to the
    validation.
    """
    by_class: dict[str | None, list[Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: picture.name):
        by_class[picture.labels[0]].append(picture)
    left = Counter(pair for picture in pictures for pair in _others(picture))
    held_out: set[str] = set()
    for number, (label, members) in enumerate(
        sorted(by_class.items(), key=lambda item: (item[0] is None, item[0] or ""))
    ):
        if len(members) < 2:
            if label is not None:
                problems.append(
                    f"{members[0].place}: {printable(members[0].name)} is the only picture of the {heads[0]} "
                    f"{label!r}, which needs at least 2: one to train on and one to validate on"
                )
            continue
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        for index in np.random.default_rng([seed, number]).permutation(len(members)):
            pairs = _others(members[index])
            if count and all(left[pair] > 1 for pair in pairs):
                held_out.add(members[index].name)
                left.subtract(pairs)
                count -= 1
    return (
        [picture for picture in pictures if picture.name not in held_out],
        [picture for picture in pictures if picture.name in held_out],
    )


def _others(picture: Picture) -> list[tuple[int, str]]:
    """The picture's labels of all heads but the first, with the heads' numbers."""
    return [(number, label) for number, label in enumerate(picture.labels) if number and label is not None]


def _picture_problem(picture: Picture) -> str | None:
    damage = picture_damage(picture.path)
    return damage and f"{picture.place}: {damage}"


def _data_error(problems: Sequence[str]) -> UserError:
    told = list(dict.fromkeys(problems))
    noun = "problem" if len(told) == 1 else "problems"
    listed = format_problems(told).replace("\n", "\n  ")
    return UserError(f"the art encoder's data have {len(told):,} {noun}:\n  {listed}")
