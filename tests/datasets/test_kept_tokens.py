"""Token ids from the cache are those that tokenising gives, and of no other texts, prompt or tokenizer."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from artkv.config.paths import user_cache
from artkv.datasets import kept_tokens as module
from artkv.datasets.columns import PathColumn, StringColumn
from artkv.datasets.kept_tokens import kept_tokens
from artkv.datasets.problems import Problem
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenized_table import TokenizedTable, tokenize_table
from artkv.quickstart.tokenizer import train_tokenizer

PROMPT = "Question: {question} Short answer:"


def table_of(questions: list[str], answers: list[str]) -> QuestionTable:
    rows = len(questions)
    numbers = StringColumn(str(row) for row in range(rows))
    types = StringColumn("" for _ in range(rows))
    columns = StringColumn(questions), StringColumn(answers), numbers, types
    lines, paintings = np.arange(rows) + 2, np.zeros(rows, dtype=np.int64)
    return QuestionTable(Path("t.csv"), *columns, lines, paintings, PathColumn([Path("a.png")]))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Question: What is this? Short answer: a boat on the sea"])


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> QuestionTable:
    monkeypatch.setattr(module, "FEWEST_ROWS", 2)
    return table_of(["What is this?", "Who?", "Où 画?"], ["a boat", "NA", "on the sea"])


def same(one: TokenizedTable, other: TokenizedTable) -> bool:
    pairs = ((one.token_ids, other.token_ids), (one.offsets, other.offsets), (one.answer_starts, other.answer_starts))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs) and one.pad_token_id == other.pad_token_id


def kept_files() -> list[Path]:
    return sorted((user_cache() / "tokens").glob("*/*/*"))


def test_the_second_start_maps_what_the_first_has_made(
    table: QuestionTable, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = tokenize_table(table, tokenizer, PROMPT)
    first, _ = kept_tokens(table, tokenizer, PROMPT)
    monkeypatch.setattr(module, "tokenize_table", None)  # not called
    second, problems = kept_tokens(table, tokenizer, PROMPT)
    assert same(first, wanted)
    assert same(second, wanted)
    assert problems == []
    assert [second.for_training(row) for row in range(3)] == [wanted.for_training(row) for row in range(3)]
    assert not second.token_ids.flags.writeable


def test_other_texts_prompts_and_tokenizers_are_made_anew(
    table: QuestionTable, tokenizer: PreTrainedTokenizerFast
) -> None:
    kept_tokens(table, tokenizer, PROMPT)
    # The same bytes, cut elsewhere.
    moved = table_of(["What is this?W", "ho?", "Où 画?"], ["a boat", "NA", "on the sea"])
    other = train_tokenizer(["A still life with lemons and a glass of wine"])
    for args in ((moved, tokenizer, PROMPT), (table, tokenizer, "Q: {question} A:"), (table, other, PROMPT)):
        before = {path: path.stat().st_ino for path in kept_files()}
        assert same(kept_tokens(*args)[0], tokenize_table(*args)[0])
        # Another run may have those mapped.
        assert before.items() < {path: path.stat().st_ino for path in kept_files()}.items()
    tokenizer.add_special_tokens({"additional_special_tokens": ["boat"]})
    assert len(kept_tokens(table, tokenizer, PROMPT)[1]) == len(tokenize_table(table, tokenizer, PROMPT)[1])


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "folder"])
def test_a_damaged_file_is_never_used(table: QuestionTable, tokenizer: PreTrainedTokenizerFast, damage: str) -> None:
    wanted, _ = kept_tokens(table, tokenizer, PROMPT)
    (path,) = kept_files()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"byte": bytes(content), "cut": bytes(content[:-7]), "empty": b""}[damage])
    assert same(kept_tokens(table, tokenizer, PROMPT)[0], wanted)


def test_small_tables_and_tables_with_problems_are_not_kept(
    table: QuestionTable, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(table.path, 2, "cannot be tokenised")
    monkeypatch.setattr(module, "tokenize_table", lambda *args: (tokenize_table(*args)[0], [problem]))
    assert kept_tokens(table, tokenizer, PROMPT)[1] == [problem]
    assert kept_files() == []
    monkeypatch.setattr(module, "tokenize_table", tokenize_table)
    monkeypatch.setattr(module, "FEWEST_ROWS", 4)
    kept_tokens(table_of(["a", "b"], ["c", "d"]), tokenizer, PROMPT)
    assert kept_files() == []
