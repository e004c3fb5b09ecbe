"""Tables as flat arrays: the ids of `encode_for_training`, made many at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import artkv.datasets.tokenized_table as tokenized_table
from artkv.datasets.image_index import ImageIndex
from artkv.datasets.table import QuestionTable, read_table
from artkv.datasets.tokenization import encode_for_training, encode_prompt
from artkv.datasets.tokenized_table import rows_with_long_answers, tokenize_table, too_long_questions

PROMPT = "Question: {question} Short answer:"
QUESTIONS = ["Which style?", "Who painted {this}?", "Was malt er, Ä Ö?", "What is thing 3?", "Why </s> now?"]


def make_table(folder: Path, num_rows: int) -> QuestionTable:
    (folder / "images").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "images/a.png")
    rows = [f'a.png,"{QUESTIONS[row % len(QUESTIONS)]}",answer {row}' for row in range(num_rows)]
    (folder / "train.csv").write_text("\n".join(["image,question,answer", *rows]))
    return read_table(folder / "train.csv", ImageIndex(folder / "images"))


@pytest.fixture
def table(tmp_path: Path) -> QuestionTable:
    return make_table(tmp_path, 23)


@pytest.mark.parametrize("rows_at_once", [1, 5, 4096])
def test_ids_are_those_of_single_questions(
    table: QuestionTable, tiny_tokenizer: Any, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenized_table, "ROWS_AT_ONCE", rows_at_once)
    tokenized, problems = tokenize_table(table, tiny_tokenizer, PROMPT)
    assert problems == []
    assert len(tokenized) == len(table) == 23
    assert tokenized.token_ids.dtype == np.int32
    for row in range(len(table)):
        question, answer = table.questions[row], table.answers[row]
        assert tokenized.for_training(row) == encode_for_training(tiny_tokenizer, PROMPT, question, answer)
        prompt = encode_prompt(tiny_tokenizer, PROMPT, question)
        assert tokenized.for_generation(row) == (prompt, [-100] * len(prompt))


def test_rows_that_cannot_be_tokenised_are_told_with_their_lines(table: QuestionTable, tiny_tokenizer: Any) -> None:
    class Unsplitting:
        """A tokenizer that makes a special token of `</s>` in a text, whatever it is told."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_tokenizer, name)

        def __call__(self, text: Any, **options: Any) -> Any:
            return tiny_tokenizer(text, add_special_tokens=options["add_special_tokens"])

    tokenized, problems = tokenize_table(table, Unsplitting(), PROMPT)
    assert [problem.line for problem in problems] == [2 + row for row in range(23) if row % 5 == 4]
    assert all("remove what looks like a special token" in problem.message for problem in problems)
    whole, _ = tokenize_table(table, tiny_tokenizer, PROMPT)
    assert tokenized.for_training(5) == whole.for_training(5)  # rows behind a bad one keep their place


def test_too_long_rows(table: QuestionTable, tiny_tokenizer: Any) -> None:
    tokenized, _ = tokenize_table(table, tiny_tokenizer, PROMPT)
    needs = [6 + len(tokenized.for_training(row)[0]) for row in range(len(table))]
    most = sorted(set(needs))[-2]
    problems = too_long_questions(tokenized, table, num_visual_tokens=6, max_positions=most)
    assert [problem.line for problem in problems] == [2 + row for row in range(23) if needs[row] > most]
    assert f"the row needs {max(needs)} positions, the language model has {most}" in problems[0].message


def test_rows_with_long_answers(table: QuestionTable, tiny_tokenizer: Any) -> None:
    tokenized, _ = tokenize_table(table, tiny_tokenizer, PROMPT)
    lengths = [len(tiny_tokenizer(f" {answer}", add_special_tokens=False).input_ids) for answer in table.answers]
    for most in (min(lengths) - 1, min(lengths), max(lengths) - 1, max(lengths)):
        expected = [row for row, length in enumerate(lengths) if length > most]
        assert rows_with_long_answers(tokenized, most) == expected


def test_a_row_is_made_of_itself_alone(
    table: QuestionTable, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized, _ = tokenize_table(table, tiny_tokenizer, PROMPT)
    expected = tokenized.for_training(7)
    # What looks at all rows of a million for each one takes more time than all else that makes a batch.
    for name in ("prompt_lengths", "lengths"):
        monkeypatch.setattr(tokenized_table.TokenizedTable, name, property(lambda self: pytest.fail("all rows")))
    assert tokenized.for_training(7) == expected
    assert tokenized.for_generation(7)[0] == expected[0][: len(tokenized.for_generation(7)[0])]
