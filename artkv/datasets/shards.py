"""Which files hold many pictures each: tar and Arrow files, which `dataset.image_root` names or holds."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from artkv.datasets.arrow_members import ARROW
from artkv.datasets.member_index import SHARD_SUFFIXES
from artkv.errors import UserError
from artkv.reading import parse_json, printable, read_regular

_PARQUET = ".parquet"
# Of `Dataset.save_to_disk`.
_STATE = "state.json"
_PATTERN = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_MOST_SHARDS = 1_000_000


def folder_of_names(image_root: Path) -> Path:
    """What the names of pictures are relative to: `image_root`, or the folder above a pattern such as {00..99}.tar."""
    if not _is_pattern(image_root):
        return image_root
    return next(folder for folder in image_root.parents if _PATTERN.search(str(folder)) is None)


def shards_of(image_root: Path) -> list[Path] | None:
    """The shards that `image_root` names, itself or as a pattern; None where it names none.

    Raises `UserError` for a pattern that names nothing, or shards that are not there.
    """
    if image_root.suffix in SHARD_SUFFIXES and image_root.is_file():
        return [image_root]
    if image_root.suffix == _PARQUET and image_root.is_file():
        raise _parquet(image_root)
    if not _is_pattern(image_root):
        return None
    place = f"dataset.image_root {printable(image_root)}"
    text = str(image_root)
    found = _PATTERN.findall(text)
    if len(found) != 1:
        raise UserError(f"{place}: has {len(found)} patterns in braces, of 1 at most; give the folder of the shards")
    first, last = found[0]
    if not text.endswith(SHARD_SUFFIXES):
        raise UserError(f"{place}: a pattern names shards; end it with {' or '.join(SHARD_SUFFIXES)}")
    if not 0 <= int(last) - int(first) < _MOST_SHARDS:
        raise UserError(f"{place}: {{{first}..{last}}} names no shards, or over {_MOST_SHARDS:,}; give {{FIRST..LAST}}")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    shards = [Path(_PATTERN.sub(f"{number:0{width}}", text)) for number in range(int(first), int(last) + 1)]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise UserError(
            f"{place}: {len(missing):,} of its {len(shards):,} shards are missing, the first {printable(missing[0])}; "
            "fetch them, or correct the pattern"
        )
    return shards


def shards_in(folder: Path, files: Iterable[str]) -> list[Path]:
    """Those of the files below a folder that are shards: tars directly in it, and Arrow files anywhere.

    Where a folder has datasets' `state.json`, its Arrow files are those that this lists. Raises `UserError` where one
    of them is missing, and for a folder of Parquet files alone, which have no places to read pictures from.
    """
    found = [file for file in sorted(files) if file.endswith(SHARD_SUFFIXES)]
    shards = [folder / file for file in found if file.endswith(ARROW) or os.sep not in file]
    states = [folder / file for file in files if os.path.basename(file) == _STATE]
    for state in states:
        if all(shard.parent != state.parent or shard.suffix != ARROW for shard in shards):
            continue
        listed = _data_files(state)
        beside = {shard for shard in shards if shard.parent == state.parent and shard.suffix == ARROW}
        shards = [shard for shard in shards if shard not in beside or shard.name in listed]
        if missing := listed - {shard.name for shard in beside}:
            raise UserError(f"{printable(state)}: its file {min(missing)!r:.200} is missing; fetch it too")
    if not shards and any(file.endswith(_PARQUET) for file in files):
        raise _parquet(folder)
    return shards


def _data_files(state: Path) -> set[str]:
    """The Arrow files that belong to a dataset."""
    try:
        return {str(entry["filename"]) for entry in parse_json(read_regular(state))["_data_files"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{printable(state)}: is not what datasets writes beside Arrow files ({printable(error)[:80]}); save the "
            "dataset anew"
        ) from None


def _parquet(root: Path) -> UserError:
    return UserError(
        f"dataset.image_root {printable(root)}: is Parquet, whose pictures are packed by the hundred, so that none can "
        "be read alone; save them once as a dataset on disk, with Python's datasets: "
        f"load_dataset({str(root)!r:.200}).save_to_disk('FOLDER'), and give that FOLDER"
    )


def _is_pattern(image_root: Path) -> bool:
    return _PATTERN.search(str(image_root)) is not None and not os.path.lexists(image_root)
