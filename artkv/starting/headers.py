"""Which column of a table is for what, by its name and by what stands in it."""

import re
from collections.abc import Callable, Mapping, Sequence

from artkv.datasets.problems import quoted
from artkv.errors import UserError

# In the order in which they are taken, lower-cased and with "_" for blanks and hyphens.
_NAMES = {
    "image": (
        "image", "img", "image_file", "image_filename", "image_name", "image_path", "img_file", "img_name", "img_path",
        "imagefile", "imagename", "filename", "file_name", "file", "filepath", "file_path", "picture", "painting",
        "photo", "path", "bild", "datei",
    ),
    "question": ("question", "questions", "question_text", "query", "frage", "q"),
    "answer": ("answer", "answers", "answer_text", "response", "reply", "label", "antwort", "a"),
    "question_type": (
        "question_type", "type", "category", "question_category", "qtype", "q_type", "kind", "topic", "kategorie",
        "need_external_knowledge",
    ),
    "question_id": ("question_id", "questionid", "qid"),
}  # fmt: skip
# What is told of a table that is one of captions.
CAPTIONS = "captions, no questions"
_CAPTIONS = ("description", "caption", "captions", "comment", "text", "title")
NEEDED = ("image", "question", "answer")
# Options of the command line by what they are for.
OPTIONS = {"image": "--image-column", "question": "--question-column", "answer": "--answer-column"}
# What stands for no column where one is asked for.
NONE = "none"


def find_columns(
    header: Sequence[str], given: Mapping[str, str], share_of_pictures: Callable[[str], float]
) -> dict[str, str]:
    """The header's name of each column, by what it is for; those that cannot be told are missing.

    given: names that somebody gave, which are taken if the header has them and leave the column missing if not.
    share_of_pictures: of a column's cells, how many are names of pictures. It decides between names that could both be
    the picture's, and finds a column of pictures whose name says nothing.
    """
    columns: dict[str, str] = {}
    for role, names in _NAMES.items():
        if role in given:
            if given[role] in header:
                columns[role] = given[role]
            continue
        free = [name for name in header if name not in given.values() and name not in columns.values()]
        candidates = [name for known in names for name in free if _plain(name) == known]
        if role == "image":
            shares = {name: share_of_pictures(name) for name in free}
            candidates.sort(key=lambda name: -shares[name])
            if not candidates or not shares[candidates[0]]:
                candidates += [name for name in free if shares[name] > 0.5]
                candidates.sort(key=lambda name: -shares[name])
        if candidates:
            columns[role] = candidates[0]
    return columns


def others_like(header: Sequence[str], role: str, taken: str) -> list[str]:
    """Columns that could by their names have been taken too."""
    return [name for name in header if name != taken and _plain(name) in _NAMES[role]]


def why_no_questions(header: Sequence[str], columns: Mapping[str, str]) -> str:
    """What a table lacks to be one of questions, and what it is if that can be told."""
    plain = {_plain(name) for name in header}
    missing = [role for role in NEEDED if role not in columns]
    if "question" in missing and "answer" in missing and plain & set(_CAPTIONS):
        return CAPTIONS
    found = ", ".join(quoted(name) for name in header[:12]) + (" ..." if len(header) > 12 else "")
    return f"no column of {' or '.join(missing)} among {found or 'no names at all'}"


def check_given(headers: Sequence[Sequence[str]], given: Mapping[str, str]) -> None:
    """Raises `UserError` for a column that was asked for and that no table has, or for two things at once."""
    role_of: dict[str, str] = {}
    for role, name in given.items():
        if name in role_of:
            first, second = (OPTIONS.get(one, "--type-column") for one in (role_of[name], role))
            raise UserError(f"{first} and {second} are both {quoted(name)}; give each a column of its own")
        role_of[name] = role
    for role, name in given.items():
        if headers and not any(name in header for header in headers) and name != NONE:
            known = ", ".join(quoted(column) for column in dict.fromkeys(c for header in headers for c in header))
            option = OPTIONS.get(role, "--type-column")
            raise UserError(f"{option} {name}: no table has such a column; give one of {known[:1000]}")


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())
