"""The token ids of large tables, kept in the user's cache, so that a million questions are tokenised once."""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

import numpy as np

from artkv.config.paths import user_cache
from artkv.datasets.problems import Problem
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import Tokenizer
from artkv.datasets.tokenized_table import TokenizedTable, tokenize_table
from artkv.files import sync

# To be raised with any change of what `tokenize_table` makes of a text, or of the file.
_FORMAT = 1
# Fewer take a second or so, and no file.
FEWEST_ROWS = 50_000
_SHA256_BYTES, _COUNTS_BYTES = 32, 16


def kept_tokens(
    table: QuestionTable, tokenizer: Tokenizer, prompt_template: str
) -> tuple[TokenizedTable, list[Problem]]:
    """As `tokenize_table`, from the cache where the same texts were tokenised before by the same tokenizer.

    The arrays are then mapped from the file, so that the ranks of a host share its pages. A file holds the SHA-256 of
    its bytes, and its name that of all that they are made of: no other is used. Tables with problems are not kept.
    """
    kept = _kept_at(table, tokenizer, prompt_template) if len(table) >= FEWEST_ROWS else None
    if kept is None or tokenizer.pad_token_id is None:
        return tokenize_table(table, tokenizer, prompt_template)
    if (found := _mapped(kept, len(table), tokenizer.pad_token_id)) is not None:
        return found, []
    made, problems = tokenize_table(table, tokenizer, prompt_template)
    if not problems:
        with suppress(OSError):  # a cache that is full or read-only: the next start tokenises again
            _keep(kept, made)
    return made, problems


def _kept_at(table: QuestionTable, tokenizer: Tokenizer, prompt_template: str) -> Path | None:
    """The file of these texts; None for a tokenizer of Python, which does not tell all that it depends on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    numbers = [_FORMAT, tokenizer.bos_token_id, tokenizer.pad_token_id, sorted(tokenizer.all_special_ids)]
    around = list(tokenizer("", add_special_tokens=True)["input_ids"])
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    sha = hashlib.sha256(json.dumps([numbers, around, added, prompt_template, backend.to_str()]).encode())
    for column in (table.questions, table.answers):
        sha.update(column.sha256())
    return user_cache() / "tokens" / f"format-{_FORMAT}" / f"{sha.hexdigest()}.tokens"


def _keep(kept: Path, made: TokenizedTable) -> None:
    counts = np.array([len(made), len(made.token_ids)], dtype=np.int64)
    body = b"".join(part.tobytes() for part in (counts, made.offsets, made.answer_starts, made.token_ids))
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{secrets.token_hex(6)}.tmp")  # of each writer: ranks start together
    try:
        with temporary.open("xb") as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)
        sync(temporary)
        temporary.replace(kept)
    finally:
        temporary.unlink(missing_ok=True)


def _mapped(kept: Path, num_rows: int, pad_token_id: int) -> TokenizedTable | None:
    """What the file holds, mapped into memory; None where there is none that is whole."""
    if not os.path.isfile(kept):
        return None
    try:
        whole = np.memmap(kept, np.uint8, "r")
    except (OSError, ValueError):  # the latter for an empty file
        return None
    body = whole[_SHA256_BYTES:]
    if hashlib.sha256(body.data).digest() != whole[:_SHA256_BYTES].tobytes():
        return None
    rows, tokens = body[:_COUNTS_BYTES].view(np.int64).tolist()
    places = _COUNTS_BYTES + 8 * (rows + 1), _COUNTS_BYTES + 8 * (2 * rows + 1)
    if rows != num_rows or len(body) != places[1] + 4 * tokens:
        return None
    offsets, starts, ids = np.split(np.asarray(body[_COUNTS_BYTES:]), [place - _COUNTS_BYTES for place in places])
    return TokenizedTable(ids.view(np.int32), offsets.view(np.int64), starts.view(np.int64), pad_token_id)
