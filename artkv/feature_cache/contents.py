"""SHA-256 of picture files: what tells one picture from another, whatever its name."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from artkv.datasets.member_index import Stamp, is_settled
from artkv.datasets.picture_files import open_picture_file, picture_stamp
from artkv.distributed import World
from artkv.errors import UserError
from artkv.feature_cache.shared_files import write_shared
from artkv.files import file_sha256
from artkv.reading import parse_json, read_regular, remedy_for

# The key of the blank picture of the question-only baseline, which is no file.
BLANK = hashlib.sha256(b"the blank picture").hexdigest()

_MAX_THREADS = 8
# Of `pictures.json`, where a picture takes some 200.
_MOST_BYTES = 2**30
_SHA256, _FILES = "sha256", "files"
_CONTENT = re.compile("[0-9a-f]{64}")


class PictureMemo:
    """The SHA-256 of files, as long as size and times stay; kept in `pictures.json` of the cache's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_news = False
        self._known: dict[str, tuple[Stamp | None, str]] = {}
        files: Any = None
        with suppress(OSError, ValueError):  # absent or unreadable: all are hashed again
            files = parse_json(read_regular(path, _MOST_BYTES))
        if isinstance(files, dict) and isinstance(files.get(_FILES), dict):
            # One that is damaged would take a picture for another, whose features are not its own.
            files = files[_FILES] if files.get(_SHA256) == _sha256(files[_FILES]) else None
        if isinstance(files, dict) and all(map(_is_remembered, files.values())):
            self._known = {name: ((entry[0], entry[1], entry[2]), entry[3]) for name, entry in files.items()}

    def get(self, path: Path) -> tuple[Stamp | None, str] | None:
        """State and SHA-256 of the file's bytes, if they are known and the file has not changed since."""
        known = self._known.get(str(path))
        return known if known is not None and known[0] == _state(path) else None

    def add(self, contents: Mapping[str, tuple[Stamp | None, str]]) -> None:
        """Remembers the files that had a state to tell a change by."""
        self._has_news |= any(self._known.get(name) != found for name, found in contents.items() if found[0])
        self._known |= {name: (state, content) for name, (state, content) in contents.items() if state is not None}

    def save(self) -> None:
        """Writes it down, if there is anything new."""
        if not self._has_news:
            return
        files = {name: [*(state or ()), content] for name, (state, content) in sorted(self._known.items())}
        write_shared(self._path, json.dumps({_SHA256: _sha256(files), _FILES: files}).encode())


def _is_remembered(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 4
        and all(type(number) is int for number in entry[:3])
        and isinstance(entry[3], str)
        and _CONTENT.fullmatch(entry[3]) is not None
    )


def _sha256(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def picture_contents(paths: Sequence[Path], memo: PictureMemo, world: World) -> dict[str, str]:
    """SHA-256 of each file by its path; the ranks share the looking and the hashing, and all get the same.

    Called on all ranks. Raises `UserError` for a file that cannot be read.
    """
    share = list(dict.fromkeys(paths))[world.rank :: world.size]
    looked_at = world.together(lambda: _look_at(share, memo, show=world.is_main))
    contents: dict[str, str] = {}
    for part in world.gather(looked_at):
        memo.add(part)
        contents |= {name: content for name, (_, content) in part.items()}
    return contents


def _look_at(paths: Sequence[Path], memo: PictureMemo, show: bool) -> dict[str, tuple[Stamp | None, str]]:
    known = {str(path): memo.get(path) for path in paths}
    unknown = [name for name, found in known.items() if found is None]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        hashed = tqdm(
            pool.map(_hash, unknown), total=len(unknown), desc="hashing pictures", unit="picture", leave=False,
            disable=None if show and unknown else True,
        )  # fmt: skip
        return {name: found for name, found in known.items() if found is not None} | dict(hashed)


def _hash(name: str) -> tuple[str, tuple[Stamp | None, str]]:
    try:
        with open_picture_file(Path(name)) as opened:
            before = opened.stamp
            content = file_sha256(opened.file)
        after = picture_stamp(Path(name))
    except OSError as error:
        remedy = remedy_for(error, "put it back")
        raise UserError(f"picture {name}: cannot be read ({error.strerror}); {remedy}") from None
    return name, (before if before == after and is_settled(max(before[1:])) else None, content)


def _state(path: Path) -> Stamp | None:
    try:
        return picture_stamp(path)
    except OSError:
        return None
