"""The hash of the questions that a run trains on, by which a resume knows them again."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from artkv.datasets.shards import folder_of_names
from artkv.datasets.table import QuestionTable

# Of the texts that are turned into JSON, and hashed, at once.
_AT_ONCE = 4096


def data_hash_of(table: QuestionTable, image_root: Path) -> str:
    """SHA-256 of the rows, in order: their pictures below `image_root`, questions and answers."""
    sha, folder = hashlib.sha256(), folder_of_names(image_root)
    names = list(_as_json(str(path.relative_to(folder)) for path in table.painting_paths))
    rows = zip(table.painting_of_row, _as_json(table.questions), _as_json(table.answers), strict=True)
    while some := list(islice(rows, _AT_ONCE)):
        sha.update(
            "".join(f"[{names[painting]}, {question}, {answer}]" for painting, question, answer in some).encode()
        )
    return sha.hexdigest()


def _as_json(texts: Iterable[str]) -> Iterator[str]:
    """Each text as `json.dumps` gives it, which takes many at once in a third of the time."""
    rest = iter(texts)
    while some := list(islice(rest, _AT_ONCE)):
        yield from json.dumps(some, separators=("\n", ": "))[1:-1].split("\n")  # a text's own line ends are escaped
