"""Prompts and folders that are texts, and not what they are meant to be."""

from pathlib import Path

import pytest

from artkv.config.said_as_text import no_switch, one_question


def test_a_prompt_has_the_question_once_and_no_other_name() -> None:
    assert one_question("Q: {question} A:") == "Q: {question} A:"
    with pytest.raises(ValueError, match="has {answer}, where {question} alone"):
        one_question("{question} {answer}")


def test_a_word_that_switches_is_no_folder() -> None:
    assert no_switch(Path("features")) == Path("features")
    with pytest.raises(ValueError, match="null is for no cache"):
        no_switch(Path("None"))
