"""The token ids of large tables, kept in the user's cache, so that a million questions are tokenised once."""

import hashlib
import json
import os

from artkv.datasets.kept_arrays import keep, kept, kept_at
from artkv.datasets.problems import Problem
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import Tokenizer
from artkv.datasets.tokenized_table import TokenizedTable, tokenize_table

# To be raised with any change of what `tokenize_table` makes of a text, or of the arrays.
_FORMAT = 2
# Fewer take a second or so, and no file.
FEWEST_ROWS = 50_000


def kept_tokens(
    table: QuestionTable, tokenizer: Tokenizer, prompt_template: str
) -> tuple[TokenizedTable, list[Problem]]:
    """As `tokenize_table`, from the cache where the same texts were tokenised before by the same tokenizer.

    The arrays are then mapped from the file, so that the ranks of a host share its pages. Tables with problems are not
    kept. A folder is of a CSV file and a tokenizer, with a file for each prompt and each state of either.
    """
    key = _key(table, tokenizer, prompt_template) if len(table) >= FEWEST_ROWS else None
    if key is None or tokenizer.pad_token_id is None:
        return tokenize_table(table, tokenizer, prompt_template)
    folder = kept_at("tokens", _FORMAT, os.path.abspath(table.path), getattr(tokenizer, "name_or_path", ""))
    if (found := kept(folder, key)) is not None:
        return TokenizedTable(**found, pad_token_id=tokenizer.pad_token_id), []
    made, problems = tokenize_table(table, tokenizer, prompt_template)
    if not problems:
        keep(folder, key, {name: getattr(made, name) for name in ("token_ids", "offsets", "answer_starts")})
    return made, problems


def _key(table: QuestionTable, tokenizer: Tokenizer, prompt_template: str) -> str | None:
    """Of the texts and all that is made of them; None for a tokenizer of Python, which does not tell what it does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    numbers = [tokenizer.bos_token_id, tokenizer.pad_token_id, sorted(tokenizer.all_special_ids)]
    around = list(tokenizer("", add_special_tokens=True)["input_ids"])
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    sha = hashlib.sha256(json.dumps([numbers, around, added, prompt_template, backend.to_str()]).encode())
    for column in (table.questions, table.answers):
        sha.update(column.sha256())
    return sha.hexdigest()
