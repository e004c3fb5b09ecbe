"""All texts of a table as token ids in flat arrays, made once, so that loader workers hold no strings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artkv.datasets.problems import Problem
from artkv.datasets.table import QuestionTable
from artkv.datasets.tokenization import IGNORED_LABEL, EncodedQuestion, Tokenizer, encode_answers, encode_prompts
from artkv.errors import UserError

# Texts that are handed to the tokenizer at once: enough for its threads, few enough to hold as Python strings.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TokenizedTable:
    """Token ids of each row's prompt and answer, as `encode_for_training` makes them.

    token_ids: (tokens,) int32, row after row: BOS, prompt, answer, newline. offsets: (rows + 1,) int64, where
    each row begins. answer_starts: (rows,) int64, where each row's answer begins in token_ids.
    pad_token_id: what rows are padded with in batches.
    """

    token_ids: np.ndarray
    offsets: np.ndarray
    answer_starts: np.ndarray
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.answer_starts)

    @property
    def prompt_lengths(self) -> np.ndarray:
        """(rows,) int64, BOS included."""
        return self.answer_starts - self.offsets[:-1]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, of prompt and answer together."""
        return np.diff(self.offsets)

    def for_training(self, row: int) -> EncodedQuestion:
        """(input_ids, labels) as of `encode_for_training`."""
        ids = self.token_ids[self.offsets[row] : self.offsets[row + 1]].tolist()
        prompt_length = int(self.answer_starts[row] - self.offsets[row])  # of this row alone: a table has a million
        return ids, [IGNORED_LABEL] * prompt_length + ids[prompt_length:]

    def for_generation(self, row: int) -> EncodedQuestion:
        """(input_ids, labels) of the prompt alone, no label counting."""
        ids = self.token_ids[self.offsets[row] : self.answer_starts[row]].tolist()
        return ids, [IGNORED_LABEL] * len(ids)


def tokenize_table(
    table: QuestionTable, tokenizer: Tokenizer, prompt_template: str
) -> tuple[TokenizedTable, list[Problem]]:
    """The table's token ids, and a problem for each row that cannot be tokenised (it is empty in the result).

    Raises `UserError` for a tokenizer that is not OPT's, or has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; use the tokenizer that belongs to model.blip2")
    pieces: list[np.ndarray] = []
    lengths = np.zeros(len(table), dtype=np.int64)
    prompt_lengths = np.zeros(len(table), dtype=np.int64)
    problems: list[Problem] = []
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(table)))
        prompts = encode_prompts(tokenizer, prompt_template, [table.questions[row] for row in rows])
        answers = encode_answers(tokenizer, [table.answers[row] for row in rows])
        ids: list[int] = []
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            if isinstance(prompt, UserError) or isinstance(answer, UserError):
                error = prompt if isinstance(prompt, UserError) else answer
                problems.append(Problem(table.path, int(table.line_numbers[row]), str(error)))
                continue
            prompt_lengths[row], lengths[row] = len(prompt), len(prompt) + len(answer)
            ids += prompt
            ids += answer
        pieces.append(np.array(ids, dtype=np.int32))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    token_ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
    return TokenizedTable(token_ids, offsets, offsets[:-1] + prompt_lengths, tokenizer.pad_token_id), problems


def too_long_questions(
    tokenized: TokenizedTable, table: QuestionTable, num_visual_tokens: int, max_positions: int
) -> list[Problem]:
    """A problem for each row whose visual tokens, question and answer do not fit into the language model.

    On a GPU a position too many is an assertion inside a kernel that names nothing.
    """
    needed = num_visual_tokens + tokenized.lengths
    rows: Sequence[int] = np.flatnonzero((needed > max_positions) & (tokenized.lengths > 0)).tolist()
    return [
        Problem(
            table.path,
            int(table.line_numbers[row]),
            f"the row needs {needed[row]} positions, the language model has {max_positions}; shorten its texts",
        )
        for row in rows
    ]


def rows_with_long_answers(tokenized: TokenizedTable, max_new_tokens: int) -> list[int]:
    """The rows whose answers have more tokens, the newline that ends them not counted."""
    answer_lengths = tokenized.lengths - tokenized.prompt_lengths - 1
    long: list[int] = np.flatnonzero(answer_lengths > max_new_tokens).tolist()
    return long
