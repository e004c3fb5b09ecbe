"""The digest of what a tokenizer does: the same for the same tokens of all texts, and another for any other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from artkv.models.files.tokenizer_digest import tokenization_digest
from tests.models.lavis_writing import write_tokenizer_as_published


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast, change: Callable[[dict[str, Any]], object]) -> str:
    """The digest of a tokenizer whose tokenizer.json was changed."""
    tokenizer.save_pretrained(folder)
    tree = json.loads((folder / "tokenizer.json").read_text())
    change(tree)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    read = AutoTokenizer.from_pretrained(folder)
    assert read.get_vocab() == tokenizer.get_vocab()
    return tokenization_digest(read)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no merges": lambda tree: tree["model"].update(merges=[]),
    "without the last merge": lambda tree: tree["model"]["merges"].pop(),
    "without a merge in the middle": lambda tree: tree["model"]["merges"].pop(len(tree["model"]["merges"]) // 2),
    "merges in another order": lambda tree: tree["model"]["merges"].reverse(),
    "small letters": lambda tree: tree.update(normalizer={"type": "Lowercase"}),
    "letters with their accents": lambda tree: tree.update(normalizer={"type": "NFC"}),
    "compatible letters": lambda tree: tree.update(normalizer={"type": "NFKC"}),
    "without accents": lambda tree: tree.update(normalizer={"type": "StripAccents"}),
    "without blanks around": lambda tree: tree.update(
        normalizer={"type": "Strip", "strip_left": True, "strip_right": True}
    ),
    "a blank in front": lambda tree: tree["pre_tokenizer"].update(add_prefix_space=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_way_from_texts_to_tokens_has_another_digest(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert saved(tmp_path, tiny_tokenizer, change) != tokenization_digest(tiny_tokenizer)


def test_the_digest_is_of_no_file(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    digest = tokenization_digest(tiny_tokenizer)
    assert saved(tmp_path / "saved", tiny_tokenizer, lambda tree: None) == digest
    tiny_tokenizer.save_pretrained(tmp_path / "published")
    write_tokenizer_as_published(tmp_path / "published")
    published = AutoTokenizer.from_pretrained(tmp_path / "published")
    assert "<image>" not in published.get_vocab()
    with_image = AutoTokenizer.from_pretrained(tmp_path / "saved")
    with_image.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokenization_digest(with_image) == digest
