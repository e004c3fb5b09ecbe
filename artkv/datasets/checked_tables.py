"""Reads and checks CSV files and their pictures on all ranks together."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artkv.datasets.decoding import MAX_PIXELS
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.kept_tables import keep_table, kept_table, settled_stamps
from artkv.datasets.problems import Problem, format_problems
from artkv.datasets.table import QuestionTable, check_rows
from artkv.datasets.table_form import PLAIN, TableForm
from artkv.distributed import World
from artkv.errors import UserError


@dataclass(frozen=True)
class CheckedTable:
    """A table as one rank has checked it, its share of the pictures included.

    table: None where the rows have problems. sha256: of the file, where it was read and not kept. stamps: of all its
    pictures before they were checked, where it is to be kept.
    """

    table: QuestionTable | None
    problems: list[Problem]
    sha256: str = ""
    stamps: np.ndarray | None = None

    def keep(self, images: ImageIndex, form: TableForm) -> None:
        """Keeps the table in the user's cache; to be called where all its pictures are known to be right."""
        if self.table is not None and self.stamps is not None:
            keep_table(self.table, self.sha256, images, form, self.stamps)


def check_table(
    csv_path: Path,
    images: ImageIndex,
    form: TableForm = PLAIN,
    share: tuple[int, int] = (0, 1),
    is_decodable: Callable[[Path], bool] = lambda path: False,
) -> CheckedTable:
    """Reads and checks a CSV file and, of its pictures, this share; see `find_problems`."""
    rows = check_rows(csv_path, images, form)
    table = None if rows.problems else rows.table()
    stamps = None if table is None else settled_stamps(table)
    problems = rows.problems + rows.damaged_pictures(images.max_pixels, share, is_decodable)
    return CheckedTable(table, sorted(problems, key=lambda problem: problem.line), rows.content.sha256, stamps)


def read_checked_tables(
    paths: Sequence[Path],
    image_root: Path,
    world: World,
    is_decodable: Callable[[Path], bool] = lambda path: False,
    max_pixels: int = MAX_PIXELS,
    form: TableForm = PLAIN,
) -> list[QuestionTable]:
    """The tables, once everything in them is known to be right; called on all ranks.

    The ranks share the decoding of the pictures, but for those that are known to be decodable; max_pixels: most of one.
    form: how the tables are written. Large ones are kept, and checked again when anything of them has changed.
    Raises one `UserError`, the same on every rank, that lists what any of them found.
    """
    images = world.together(lambda: ImageIndex(image_root, max_pixels))
    share = (world.rank, world.size)

    def checked(path: Path) -> CheckedTable:
        known = kept_table(path, images, form)
        return CheckedTable(known, []) if known is not None else check_table(path, images, form, share, is_decodable)

    tables = world.together(lambda: [checked(path) for path in paths])
    found_by_any = {
        problem for part in world.gather([p for table in tables for p in table.problems]) for problem in part
    }
    if found_by_any:
        place = {path: number for number, path in enumerate(paths)}
        ordered = sorted(found_by_any, key=lambda problem: (place[problem.path], problem.line, problem.message))
        raise UserError(format_problems(ordered, keeps_all=world.is_main), on_all_ranks=True)
    for table in tables:
        # A rank knows of the others' shares that they are right where they saw the same files.
        seen = None if table.stamps is None else hashlib.sha256(table.stamps.tobytes()).digest()
        if len(set(world.gather(seen))) == 1 and world.local_rank == 0:
            table.keep(images, form)
    return [table.table for table in tables if table.table is not None]
