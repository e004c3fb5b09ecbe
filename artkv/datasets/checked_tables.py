"""Reads and checks CSV files and their pictures on all ranks together."""

from collections.abc import Callable, Sequence
from pathlib import Path

from artkv.datasets.decoding import MAX_PIXELS
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.problems import format_problems
from artkv.datasets.table import QuestionTable, find_problems, read_table
from artkv.datasets.table_form import PLAIN, TableForm
from artkv.distributed import World
from artkv.errors import UserError


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
    form: how the tables are written. Raises one `UserError`, the same on every rank, that lists what any of them found.
    """
    images = world.together(lambda: ImageIndex(image_root, max_pixels))
    share = (world.rank, world.size)
    problems = world.together(
        lambda: [problem for path in paths for problem in find_problems(path, images, share, is_decodable, form)]
    )
    found_by_any = {problem for part in world.gather(problems) for problem in part}
    if found_by_any:
        place = {path: number for number, path in enumerate(paths)}
        ordered = sorted(found_by_any, key=lambda problem: (place[problem.path], problem.line, problem.message))
        raise UserError(format_problems(ordered, keeps_all=world.is_main), on_all_ranks=True)
    return world.together(lambda: [read_table(path, images, form) for path in paths])
