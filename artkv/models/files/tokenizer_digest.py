"""What a tokenizer makes of texts, as one digest: merges, normaliser and splitting are seen by what they do."""

import hashlib
import json
from typing import Any

# Tokens of the vocabulary in one text: a tokenizer is quicker at few long texts than at many short ones.
_TOKENS_A_TEXT = 512
# What normalisers change: case, accents apart and joined, letters of other widths, blanks, and what they call control.
_TEXTS = (
    "Who painted THIS? Is it Fauvism, or isn't it?  In 1905  he'd say: \u201cart!\u201d",
    "e\u0301 \u00e9 \ufb01 \uff21 \u2460 \u00df \u0130 \u03a3\u03c2",
    "\u4e2d\u6587 \u0645\u0631\u062d\u0628\u0627 \U0001f3a8",
    " \ttabs\tand\u00a0blanks \n\n lines \r\n end  ",
)


def tokenization_digest(tokenizer: Any) -> str:
    """SHA-256 over the ids that a transformers tokenizer makes of every token of its vocabulary and of some texts.

    Of what it does and not of its files, which say the same in several ways (tokenizer.json, or vocab.json with
    merges.txt) and are written otherwise by other versions. Tokens that were added to the vocabulary, which texts of
    artkv never become, are left out.
    """
    added = tokenizer.get_added_vocab()
    tokens = sorted((index, token) for token, index in tokenizer.get_vocab().items() if token not in added)
    words = [tokenizer.convert_tokens_to_string([token]) for _, token in tokens]
    texts = ["\n".join(words[first : first + _TOKENS_A_TEXT]) for first in range(0, len(words), _TOKENS_A_TEXT)]
    texts += _TEXTS
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return hashlib.sha256(json.dumps([texts, ids]).encode()).hexdigest()
