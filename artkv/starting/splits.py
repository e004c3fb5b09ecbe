"""Which table is which split, by its name, and a single table's paintings shared out among the three."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from artkv.config.dataset_schema import SPLITS
from artkv.datasets.shared_pictures import same_pictures
from artkv.errors import UserError
from artkv.reading import printable
from artkv.starting.tables import Table

# Of the paintings of a single table, so many are validated on, and as many tested on.
HELD_OUT = 0.1
_WORDS = {
    "train": "train", "training": "train", "trn": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip


def split_of(path: Path) -> str | None:
    """The split that a file's name tells, or its folder's; None where neither does."""
    for name in (path.stem, path.parent.name):
        found = {_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def by_split(tables: Sequence[Table]) -> dict[str, Table]:
    """The table of each split, by their names; one table alone is `all`, whatever its name is.

    Raises `UserError` where two tables would be one split, or none is to be trained on.
    """
    if len(tables) == 1:
        return {"all": tables[0]}
    of_split: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        of_split[split_of(table.path) or "none"].append(table)
    for split in SPLITS:
        if len(of_split[split]) > 1:
            first, second = (printable(table.path) for table in of_split[split][:2])
            raise UserError(
                f"{first} and {second}: both are {split} by their names; give the folder of one of them, with --images "
                "for the pictures if they lie elsewhere"
            )
    if not of_split["train"]:
        names = ", ".join(printable(table.path.name) for table in tables[:6])
        raise UserError(
            f"{printable(tables[0].path.parent)}: {len(tables)} tables of questions ({names}), and none is to train on "
            "by its name; name them train, val and test, or give the folder of one alone"
        )
    return {split: of_split[split][0] for split in SPLITS if of_split[split]}


def share_out(pictures: Sequence[Path], root: Path, seed: int) -> dict[Path, str]:
    """The split of each picture: so many in each, the same for the same seed; copies of a picture go with it.

    pictures: distinct paths below `root`. Neither their order nor where `root` lies matters.
    Raises `UserError` where there are fewer than three.
    """
    groups: dict[int, list[Path]] = defaultdict(list)
    for picture, group in zip(pictures, same_pictures(pictures), strict=True):
        groups[group].append(picture)
    if len(groups) < len(SPLITS):
        raise UserError(
            f"{printable(root)}: the questions are on {len(groups)} painting{'s' * (len(groups) != 1)}, and a painting "
            "belongs to one split alone; three are needed to train, validate and test"
        )

    def drawn(group: list[Path]) -> str:
        name = min(picture.relative_to(root).as_posix() for picture in group)
        return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).hexdigest()

    ordered = sorted(groups.values(), key=drawn)
    held_out = max(1, round(HELD_OUT * len(ordered)))
    split_of_picture = {}
    for place, members in enumerate(ordered):
        split = "test" if place < held_out else "val" if place < 2 * held_out else "train"
        split_of_picture.update(dict.fromkeys(members, split))
    return split_of_picture
