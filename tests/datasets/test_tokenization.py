"""Ids and labels against hand-computed ones, and user text that looks like special tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from artkv.datasets.tokenization import collate_questions, encode_for_training, encode_prompt, newline_token_id
from artkv.errors import UserError
from artkv.quickstart.tokenizer import train_tokenizer

TEMPLATE = "Question: {question} Short answer:"
BEGIN = 2  # </s>, OPT's BOS


@pytest.fixture(params=["made", "loaded"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Any:
    if request.param == "made":
        return tiny_tokenizer
    tiny_tokenizer.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_training_ids_and_labels(tokenizer: Any) -> None:
    input_ids, labels = encode_for_training(tokenizer, TEMPLATE, " Which style is this? ", " baroque ")
    # The stock tokenizer's own ids of the whole text, BOS in front.
    prompt = tokenizer("Question: Which style is this? Short answer:")["input_ids"]
    answer = tokenizer(" baroque", add_special_tokens=False)["input_ids"]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert prompt[0] == BEGIN
    assert prompt[1] != BEGIN
    assert input_ids == prompt + answer + newline
    assert labels == [-100] * len(prompt) + answer + newline
    assert tokenizer.decode(input_ids[1:]) == "Question: Which style is this? Short answer: baroque\n"
    assert newline == [newline_token_id(tokenizer)]


def test_generation_starts_from_the_prompt_that_was_trained_on(tokenizer: Any) -> None:
    prompt_ids = encode_prompt(tokenizer, TEMPLATE, "Who painted this picture?")
    input_ids, labels = encode_for_training(tokenizer, TEMPLATE, "Who painted this picture?", "Jan van Eyck")
    assert input_ids[: len(prompt_ids)] == prompt_ids
    assert labels.count(-100) == len(prompt_ids)
    assert tokenizer.decode(prompt_ids[1:]).endswith("Short answer:")


@pytest.mark.parametrize(
    "text", ["a </s> b", "<image>", "<pad><s><unk></s>", "{} {question} {0} {x!r} %s", "{", "é 画 \u2028 🎨"]
)
def test_user_text_stays_text(tokenizer: Any, text: str) -> None:
    input_ids, labels = encode_for_training(tokenizer, TEMPLATE, text, text)
    assert input_ids.count(BEGIN) == 1
    assert not set(input_ids[1:]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(input_ids[1:]) == f"Question: {text} Short answer: {text}\n"
    assert tokenizer.decode([label for label in labels if label != -100]) == f" {text}\n"


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer: Any) -> None:
    encode_prompt(tokenizer, TEMPLATE, "x")
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [BEGIN]


class _StillSpecial:
    """A tokenizer that does not know split_special_tokens."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> Any:
        return self._inner(text, add_special_tokens=add_special_tokens)


def test_a_tokenizer_that_makes_special_tokens_of_text_is_refused(tiny_tokenizer: Any) -> None:
    stubborn = _StillSpecial(tiny_tokenizer)
    assert encode_prompt(stubborn, TEMPLATE, "plain") == encode_prompt(tiny_tokenizer, TEMPLATE, "plain")
    for text in ("a </s> b", "an <image> here"):
        with pytest.raises(UserError, match=r"special tokens .*remove what looks like"):
            encode_prompt(stubborn, TEMPLATE, text)


def test_newline_must_be_a_single_token(tiny_tokenizer: Any) -> None:
    class Splits(_StillSpecial):
        def __call__(self, text: str, **options: Any) -> Any:
            return {"input_ids": [7, 8] if text == "\n" else [9]}

    with pytest.raises(UserError, match=r"2 tokens \(\[7, 8\]\) of a newline.*use the tokenizer"):
        newline_token_id(Splits(tiny_tokenizer))


def test_begin_token_is_there_exactly_once_whatever_the_tokenizer_adds() -> None:
    tokenizer = train_tokenizer(["Question: Short answer:"], vocab_size=270)
    expected = encode_prompt(tokenizer, TEMPLATE, "x")
    silent = train_tokenizer(["Question: Short answer:"], vocab_size=270)
    silent.backend_tokenizer.post_processor = processors.ByteLevel()
    assert silent("x")["input_ids"][0] != BEGIN
    assert encode_prompt(silent, TEMPLATE, "x") == expected
    closing = train_tokenizer(["Question: Short answer:"], vocab_size=270)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", BEGIN)]
    )
    with pytest.raises(UserError, match=r"puts tokens \[2, 2\] around a text, expected its BOS alone"):
        encode_prompt(closing, TEMPLATE, "x")


def test_padding_on_the_right_by_hand() -> None:
    encoded = [([2, 5, 6, 7], [-100, -100, 6, 7]), ([2, 8], [-100, 8]), ([2, 1, 1], [-100, -100, 1])]
    questions = collate_questions(encoded, [0, 1, 0], weight=1.0, pad_token_id=1)
    # The pad id inside a text is a real token: the mask comes from lengths, not from ids.
    assert questions.input_ids.tolist() == [[2, 5, 6, 7], [2, 8, 1, 1], [2, 1, 1, 1]]
    assert questions.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert questions.labels.tolist() == [[-100, -100, 6, 7], [-100, 8, -100, -100], [-100, -100, 1, -100]]
    assert questions.painting_index.tolist() == [0, 1, 0]
    assert questions.weight.tolist() == [1.0, 1.0, 1.0]
    for name in ("input_ids", "attention_mask", "labels", "painting_index"):
        assert getattr(questions, name).dtype == torch.int64
    assert questions.weight.dtype == torch.float32
    assert questions.answer_token_count() == 4
    assert collate_questions(encoded, [0, 1, 0], weight=0.0, pad_token_id=1).answer_token_count() == 0
