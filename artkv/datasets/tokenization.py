"""Turns questions and answers into token ids, and pads them into batches."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch

from artkv.batch import QuestionBatch
from artkv.datasets.problems import quoted
from artkv.errors import UserError

IGNORED_LABEL = -100

EncodedQuestion = tuple[list[int], list[int]]


class Tokenizer(Protocol):
    """What is asked of a tokenizer; transformers' tokenizers have it."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def all_special_ids(self) -> list[int]: ...
    @property
    def added_tokens_decoder(self) -> dict[int, Any]: ...

    def __hash__(self) -> int: ...
    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = ..., split_special_tokens: bool = ...
    ) -> Any: ...


def encode_prompt(tokenizer: Tokenizer, prompt_template: str, question: str) -> list[int]:
    """The ids of BOS and of the template with the question put in; what generation starts from.

    BOS is `</s>`, as OPT was trained. The question's text stays text: braces mean nothing, and "</s>"
    or "<image>" in it do not become special tokens.
    """
    return _raise_or_return(encode_prompts(tokenizer, prompt_template, [question])[0])


def encode_for_training(tokenizer: Tokenizer, prompt_template: str, question: str, answer: str) -> EncodedQuestion:
    """(input_ids, labels) of BOS, prompt, " " + answer and the newline that ends it.

    labels are the ids on the answer and the newline, and -100 on BOS and prompt. The answer is tokenised
    by itself, so that the prompt's ids are those that generation starts from.
    """
    prompt_ids = encode_prompt(tokenizer, prompt_template, question)
    answer_ids = _raise_or_return(encode_answers(tokenizer, [answer])[0])
    return prompt_ids + answer_ids, [IGNORED_LABEL] * len(prompt_ids) + answer_ids


def encode_prompts(tokenizer: Tokenizer, prompt_template: str, questions: Sequence[str]) -> list[list[int] | UserError]:
    """`encode_prompt` of many questions at once; in the place of one that fails, its error."""
    begin = _begin_token_id(tokenizer)
    prompts = [prompt_template.replace("{question}", question.strip()) for question in questions]
    return [ids if isinstance(ids, UserError) else [begin, *ids] for ids in _text_ids(tokenizer, prompts)]


def encode_answers(tokenizer: Tokenizer, answers: Sequence[str]) -> list[list[int] | UserError]:
    """The ids of " " + answer and the newline, for each answer; in the place of one that fails, its error."""
    newline = newline_token_id(tokenizer)
    texts = [" " + answer.strip() for answer in answers]
    return [ids if isinstance(ids, UserError) else [*ids, newline] for ids in _text_ids(tokenizer, texts)]


@lru_cache(maxsize=8)
def newline_token_id(tokenizer: Tokenizer) -> int:
    """The id of the newline, on which answers end; raises `UserError` if it is not a single token."""
    ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(
            f"the tokenizer makes {len(ids)} tokens ({list(ids)}) of a newline, which must be one, for answers "
            "end on it; use the tokenizer of OPT that belongs to model.blip2"
        )
    return int(ids[0])


def collate_questions(
    encoded: Sequence[EncodedQuestion], painting_index: Sequence[int], weight: float, pad_token_id: int
) -> QuestionBatch:
    """Pads encoded questions on the right into one batch; all rows get the same weight, 1 or 0."""
    lengths = torch.tensor([len(input_ids) for input_ids, _ in encoded])
    shape = (len(encoded), int(lengths.max()))
    input_ids_QT = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels_QT = torch.full(shape, IGNORED_LABEL, dtype=torch.int64)
    for row, (input_ids, labels) in enumerate(encoded):
        input_ids_QT[row, : len(input_ids)] = torch.tensor(input_ids)
        labels_QT[row, : len(labels)] = torch.tensor(labels)
    return QuestionBatch(
        input_ids=input_ids_QT,
        attention_mask=(torch.arange(shape[1]) < lengths[:, None]).long(),
        labels=labels_QT,
        answer_places=(labels_QT.flatten() != IGNORED_LABEL).nonzero().squeeze(1),
        painting_index=torch.tensor(painting_index, dtype=torch.int64),
        weight=torch.full((len(encoded),), weight, dtype=torch.float32),
    )


def _text_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int] | UserError]:
    all_ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [_checked(tokenizer, text, ids) for text, ids in zip(texts, all_ids, strict=True)]


def _checked(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[int] | UserError:
    special = _special_ids(tokenizer).intersection(ids)
    if special:
        return UserError(
            f"the tokenizer makes special tokens {sorted(special)} of the text {quoted(text)}; "
            "remove what looks like a special token from it"
        )
    return list(ids)


def _raise_or_return(ids: list[int] | UserError) -> list[int]:
    if isinstance(ids, UserError):
        raise ids
    return ids


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(marked.union(tokenizer.all_special_ids))


@lru_cache(maxsize=8)
def _begin_token_id(tokenizer: Tokenizer) -> int:
    """BOS, which a tokenizer may put in front by itself or not; raises if it puts anything else around."""
    around = list(tokenizer("", add_special_tokens=True)["input_ids"])
    begin = tokenizer.bos_token_id
    if begin is None or around not in ([], [begin]):
        raise UserError(
            f"the tokenizer puts tokens {around} around a text, expected its BOS alone ({begin}); "
            "use the tokenizer of OPT that belongs to model.blip2"
        )
    return begin
