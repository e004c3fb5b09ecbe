"""The answers that a model chooses among by their likelihood, for question types with few.

A candidate's score is the log probability of exactly this answer, the newline that ends it included.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artkv.datasets.choice_packing import RowChoices
from artkv.datasets.problems import Problem, format_problems, quoted
from artkv.datasets.question_set import QuestionSet
from artkv.datasets.records import read_records
from artkv.datasets.table import QuestionTable
from artkv.datasets.table_form import PLAIN, TableForm
from artkv.datasets.tokenization import Tokenizer, encode_answers
from artkv.errors import UserError
from artkv.evaluation.scores import UNTYPED, Choice
from artkv.reading import is_blank, unseen_character

# Of a type, where they are gathered from training questions. A type with more different answers is one of names and
# titles, which are not chosen among a few.
MOST_CANDIDATES = 64


@dataclass(frozen=True)
class Candidates:
    """The answers to choose among, by question type; `untyped` is the type of ''.

    by_type: as they are put to the model, sorted lower-cased, in which no two are equal. left_out: types that have too
    many, and how many. source: the file that they are from.
    """

    by_type: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, int]
    source: Path

    def of(self, question_type: str) -> tuple[str, ...]:
        """Of a question type, which may be ''; empty where there are none."""
        return self.by_type.get(question_type or UNTYPED, ())

    def to_json(self) -> dict[str, list[str]]:
        """`{type: [candidate, ...]}`."""
        return {name: list(texts) for name, texts in self.by_type.items()}

    def describe(self, question_types: Iterable[str]) -> str:
        """What the questions of these types choose among, and which of them do not choose; one line."""
        asked = sorted({name or UNTYPED for name in question_types})
        chosen = [f"{name} ({len(self.by_type[name])})" for name in asked if name in self.by_type]
        without = [
            f"{name} ({self.left_out[name]} different answers, more than {MOST_CANDIDATES})"
            if name in self.left_out
            else f"{name} (none in {self.source.name})"
            for name in asked
            if name not in self.by_type
        ]
        line = f"choices: {', '.join(chosen) or 'none'}"
        return f"{line}; left out: {', '.join(without)}" if without else line


def read_candidates(path: Path, most: int | None = None, form: TableForm = PLAIN) -> Candidates:
    """The distinct answers of each question type in a CSV file, of whose columns only `answer` must be there.

    Texts that are equal once lower-cased, as exact match has it, are one candidate, spelled as it is most often.
    Without `question_type` all are of the type `untyped`. most: types with more are left out; None: none is. form: how
    the file is written. `UserError` with the lines for a file that is not right.
    """
    content = read_records(path, required=("answer",), form=form)
    problems = list(content.problems)
    spellings: dict[str, dict[str, Counter[str]]] = {}
    for record in content.records if "answer" in content.columns else ():
        answer = record.cells["answer"]
        if is_blank(answer) or "\n" in answer or "\r" in answer:
            what = f"holds nothing that can be seen, but {unseen_character(answer)}" if is_blank(answer) else ""
            wrong = f"answer {quoted(answer)} {what or 'holds a line break'}" if answer else "empty answer"
            problems.append(Problem(path, record.line, f"{wrong}; give each candidate as one line of text"))
            continue
        of_type = spellings.setdefault(record.cells.get("question_type") or UNTYPED, {})
        of_type.setdefault(answer.lower(), Counter())[answer] += 1
    if problems:
        in_order: list[Problem] = sorted(problems, key=lambda problem: problem.line)
        raise UserError(format_problems(in_order))
    by_type: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, int] = {}
    for name, texts in sorted(spellings.items()):
        if most is not None and len(texts) > most:
            left_out[name] = len(texts)
        else:
            by_type[name] = tuple(_most_frequent(texts[text]) for text in sorted(texts))
    return Candidates(by_type, left_out, path)


def row_choices(candidates: Candidates, questions: QuestionSet, tokenizer: Tokenizer, longest: int) -> RowChoices:
    """The candidates of each question as token ids.

    longest: most tokens of a prompt with an answer and its newline. `UserError` if no question has candidates, or one
    does not fit behind its question.
    """
    table = questions.table
    types = [name or UNTYPED for name in table.question_types]
    names = [name for name in candidates.by_type if name in set(types)]
    if not names:
        remedy = "give its question_type one of the table's, or leave that column out"
        if set(types) == {UNTYPED}:
            has = ", ".join(list(candidates.by_type)[:5])
            remedy = (
                f"give the questions of {table.path.name} their types ({has}) in its column question_type, or give "
                "--choices a CSV file with the column answer alone"
            )
        raise UserError(
            f"{candidates.source}: has candidates for none of the types of {table.path}; "
            f"{candidates.describe(table.question_types)}; {remedy}"
        )
    sets = []
    for name in names:
        encoded = encode_answers(tokenizer, candidates.by_type[name])
        for text, ids in zip(candidates.by_type[name], encoded, strict=True):
            if isinstance(ids, UserError):
                raise UserError(f"{candidates.source}: candidate {quoted(text)} of type {name}: {ids}")
        sets.append(tuple(tuple(ids) for ids in encoded if not isinstance(ids, UserError)))
    number_of = {name: number for number, name in enumerate(names)}
    set_of_row = np.array([number_of.get(name, -1) for name in types], dtype=np.int64)
    most_of_set = np.array([max(map(len, answers)) for answers in sets])
    needed = np.where(set_of_row < 0, 0, questions.tokenized.prompt_lengths + most_of_set[set_of_row])
    if (needed > longest).any():
        row = int(needed.argmax())
        answers = sets[set_of_row[row]]
        text = candidates.of(table.question_types[row])[int(np.argmax([len(answer) for answer in answers]))]
        raise UserError(
            f"{table.place(row)}: with the candidate {quoted(text)} of {candidates.source} the question has "
            f"{needed[row]} tokens, the language model has room for {longest}; shorten one of them"
        )
    return RowChoices(tuple(sets), set_of_row)


def choose(
    candidates: Candidates, table: QuestionTable, log_likelihoods: Sequence[NDArray[np.float64]]
) -> list[Choice | None]:
    """What each question of a table chooses by its candidates' log likelihoods; None where it has none.

    Probabilities are the softmax of the log likelihoods: those of the model, given that the answer is a candidate. Of
    equally likely ones the first is chosen.
    """
    chosen: list[Choice | None] = []
    for question_type, answer, logs in zip(table.question_types, table.answers, log_likelihoods, strict=True):
        texts = candidates.of(question_type)
        if not texts:
            chosen.append(None)
            continue
        weights = np.exp(logs - logs.max())
        shares = weights / weights.sum()
        best = int(logs.argmax())
        gold = sum(float(share) for text, share in zip(texts, shares, strict=True) if text.lower() == answer.lower())
        chosen.append(Choice(texts[best], float(shares[best]), gold))
    return chosen


def _most_frequent(spellings: Counter[str]) -> str:
    return min(spellings, key=lambda text: (-spellings[text], text))
