"""The scores that ArtQuest's training code logs beside exact match and BLEU, by the libraries that it takes them from.

It has them from Hugging Face's `evaluate`: `google_bleu` is nltk's corpus GLEU of 13a tokens, `rouge` is rouge_score's
ROUGE-L F-measure without stemming, `meteor` is nltk's METEOR of nltk's words. Both libraries are artkv's extra
`metrics`; METEOR also needs nltk's data. Letters in array names are explained in `artkv.batch`;
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

GLEU, ROUGE_L, METEOR = "gleu", "rouge_l", "meteor"
EXTRA_METRICS = (GLEU, ROUGE_L, METEOR)
GET_METEOR = "python -m nltk.downloader wordnet punkt_tab"
_LIBRARIES = ("nltk", "rouge_score")
_LONGEST_NGRAM = 4
_words = Tokenizer13a()


def extra_metrics(note: Callable[[str], None]) -> tuple[str, ...]:
    """Those of `EXTRA_METRICS` that can be computed here; none where artkv's extra `metrics` is not installed.

    note: is told what is missing for METEOR, if that alone is left out.
    """
    if any(find_spec(library) is None for library in _LIBRARIES):
        return ()
    missing = _missing_data()
    if missing is None:
        return EXTRA_METRICS
    note(f"METEOR is left out, for which nltk lacks {missing}; to have it: {GET_METEOR}")
    return (GLEU, ROUGE_L)


def score_extras(
    predictions: Iterable[str], answers: Iterable[str], metrics: Sequence[str]
) -> list[NDArray[np.float64]]:
    """For each of `metrics` an array (Q, 2): each question's numerator and denominator.

    A score of a set of questions is the sum of its numerators over that of its denominators. Those of GLEU are n-grams,
    so that longer answers count for more, as corpus GLEU has it; the others are means over questions. Texts are
    lower-cased. Equal pairs are scored once.
    """
    scores = [_SCORES[metric] for metric in metrics]
    known: dict[tuple[str, str], list[tuple[float, int]]] = {}
    rows = []
    for pair in zip(predictions, answers, strict=True):
        if pair not in known:
            prediction, answer = (text.lower() for text in pair)
            known[pair] = [score(prediction, answer) for score in scores]
        rows.append(known[pair])
    return [np.array([row[place] for row in rows], dtype=np.float64) for place in range(len(metrics))]


def _gleu(prediction: str, answer: str) -> tuple[float, int]:
    """n-grams of 1 to 4 words that both sides have, and those of the longer side."""
    from nltk.translate.gleu_score import sentence_gleu

    hypothesis, reference = _words(prediction).split(), _words(answer).split()
    longest = max(len(hypothesis), len(reference))
    ngrams = sum(max(0, longest - length + 1) for length in range(1, _LONGEST_NGRAM + 1))
    # Two empty sides have none; they count as one that was missed, and not as a share of nothing.
    share = sentence_gleu([reference], hypothesis, max_len=_LONGEST_NGRAM)
    return float(round(share * ngrams)), max(ngrams, 1)


def _rouge_l(prediction: str, answer: str) -> tuple[float, int]:
    return _rouge_scorer().score(target=answer, prediction=prediction)["rougeL"].fmeasure, 1


def _meteor(prediction: str, answer: str) -> tuple[float, int]:
    from nltk.corpus import wordnet
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    return single_meteor_score(word_tokenize(answer), word_tokenize(prediction), wordnet=wordnet), 1


_SCORES: dict[str, Callable[[str, str], tuple[float, int]]] = {GLEU: _gleu, ROUGE_L: _rouge_l, METEOR: _meteor}


@cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def _missing_data() -> str | None:
    """Which of its data nltk lacks for METEOR; None where it has all."""
    from nltk.corpus import wordnet
    from nltk.tokenize import word_tokenize

    # WordNet's reader loads its files when it is first asked for anything.
    for name, probe in (("WordNet", lambda: wordnet.synsets("paint")), ("punkt_tab", lambda: word_tokenize("paint"))):
        try:
            probe()
        except (LookupError, OSError):  # not there, or in part
            return name
    return None
