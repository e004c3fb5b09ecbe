"""GLEU, ROUGE-L and METEOR against their libraries called as ArtQuest's training code calls them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

import artkv.evaluation.extra_scores as extra_scores
from artkv.evaluation.extra_scores import EXTRA_METRICS, GLEU, METEOR, ROUGE_L, extra_metrics
from artkv.evaluation.scores import METRICS, Scores, format_extras, format_table, score_predictions

needs_libraries = pytest.mark.skipif(
    any(extra_scores.find_spec(library) is None for library in ("nltk", "rouge_score")),
    reason="needs nltk and rouge_score: pip install 'artkv[metrics]'",
)

PREDICTIONS = ["Oil on canvas", "jan van eyck", "the starry night", "baroque paintings", "", "oil on oil", "a ship."]
ANSWERS = [
    "oil on Canvas",
    "Hubert van Eyck",
    "Starry Night",
    "rococo painting",
    "oil",
    "Oil on oil on canvas, signed",
    "boat",
]
TYPES = ["technique", "artist", "title", "", "technique", "technique", "title"]
CLUSTERS = [0, 0, 1, 1, 2, 2, 3]


def scored(metric: str) -> Scores:
    return score_predictions(PREDICTIONS, ANSWERS, TYPES, 200, 1, CLUSTERS, [metric])


def lower(texts: list[str]) -> list[str]:
    return [text.lower() for text in texts]


def corpus_gleu(predictions: list[str], answers: list[str]) -> float:
    """As `evaluate`'s google_bleu has it: one corpus of 13a tokens."""
    from nltk.translate.gleu_score import corpus_gleu

    tokens = [[sacrebleu.tokenizers.tokenizer_13a.Tokenizer13a()(text).split() for text in side]
              for side in (lower(answers), lower(predictions))]  # fmt: skip
    return corpus_gleu([[reference] for reference in tokens[0]], tokens[1])


@needs_libraries
def test_gleu_is_that_of_the_corpus_and_not_a_mean() -> None:
    scores = scored(GLEU)
    # 1e-12: the same integers, divided once.
    assert scores.overall.gleu.value == pytest.approx(corpus_gleu(PREDICTIONS, ANSWERS), abs=1e-12)
    rows = [row for row, kind in enumerate(TYPES) if kind == "technique"]
    of_type = corpus_gleu([PREDICTIONS[row] for row in rows], [ANSWERS[row] for row in rows])
    assert scores.by_type["technique"].gleu.value == pytest.approx(of_type, abs=1e-12)
    mean = np.mean([corpus_gleu([PREDICTIONS[row]], [ANSWERS[row]]) for row in rows])
    assert abs(mean - of_type) > 0.01


@needs_libraries
def test_gleu_of_any_texts_is_the_librarys() -> None:
    generator = np.random.default_rng(0)
    words = ["oil", "on", "canvas,", "73", "x", "92", "cm.", "l'étoile", "(signed)", "", "&amp;", "van-eyck"]
    texts = [[" ".join(generator.choice(words, size=generator.integers(1, 9))) for _ in range(200)] for _ in range(2)]
    scores = score_predictions(*texts, [""] * 200, 10, 0, None, [GLEU])
    assert scores.overall.gleu.value == pytest.approx(corpus_gleu(*texts), abs=1e-12)


@needs_libraries
def test_rouge_l_is_the_mean_f_measure_without_stems() -> None:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"])
    each = [scorer.score(*pair)["rougeL"].fmeasure for pair in zip(lower(ANSWERS), lower(PREDICTIONS), strict=True)]
    scores = scored(ROUGE_L)
    assert scores.overall.rouge_l.value == pytest.approx(np.mean(each), abs=1e-12)
    assert scores.by_type["artist"].rouge_l.value == pytest.approx(each[1], abs=1e-12)


@needs_libraries
@pytest.mark.parametrize("metric", [GLEU, ROUGE_L])
def test_intervals_draw_whole_paintings(metric: str) -> None:
    """Against a plain loop over drawn paintings, on many questions so that the percentiles are near those of both."""
    generator = np.random.default_rng(3)
    cluster = generator.integers(40, size=400)
    answers = [f"{'oil on canvas of some size ' * (painting % 3 + 1)}number {painting}" for painting in cluster]
    predictions = [text if generator.random() < 0.5 else "oil on panel" for text in answers]
    found = getattr(
        score_predictions(predictions, answers, [""] * 400, 2000, 5, cluster.tolist(), [metric]).overall, metric
    )
    (parts,) = extra_scores.score_extras(predictions, answers, [metric])
    members = [np.flatnonzero(cluster == name) for name in np.unique(cluster)]
    values = []
    for _ in range(2000):
        drawn = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        values.append(parts[drawn, 0].sum() / parts[drawn, 1].sum())
    low, high = np.quantile(values, [0.022, 0.978])  # Hesterberg's percentiles with 40 paintings
    # Each of two independent bootstraps of 2000 knows its 2.2nd percentile to 0.003: sd 0.03 x 0.0033 / 0.053 x 1.4.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.low < found.value < found.high


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A WordNet of one meaning, which `boat` and `ship` have, and a tokenizer that knows no abbreviations."""
    import nltk
    from nltk.corpus import LazyCorpusLoader, WordNetCorpusReader
    from nltk.tokenize import _get_punkt_tokenizer

    wordnet, punkt = tmp_path / "corpora" / "wordnet", tmp_path / "tokenizers" / "punkt_tab" / "english"
    for folder in (wordnet, punkt):
        folder.mkdir(parents=True)
    parts = ("adj", "adv", "noun", "verb")
    empty = [*(f"{kind}.{part}" for kind in ("index", "data") for part in parts), *(f"{part}.exc" for part in parts)]
    for name in (*empty, "cntlist.rev", "index.sense"):
        (wordnet / name).write_text("")
    (wordnet / "lexnames").write_text("".join(f"{place:02d}\tname.{place}\t1\n" for place in range(7)))
    (wordnet / "data.noun").write_text("00000000 06 n 02 boat 0 ship 0 000 | what floats\n")
    (wordnet / "index.noun").write_text("".join(f"{word} n 1 0 1 0 00000000  \n" for word in ("boat", "ship")))
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    # What has been loaded stays loaded: this test has its own.
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr("nltk.corpus.wordnet", fresh)
    _get_punkt_tokenizer.cache_clear()
    yield tmp_path
    _get_punkt_tokenizer.cache_clear()


@needs_libraries
def test_meteor_is_nltks_with_words_and_meanings(nltk_data: Path) -> None:
    from nltk.corpus import wordnet
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import meteor_score

    notes: list[str] = []
    assert extra_metrics(notes.append) == EXTRA_METRICS
    assert notes == []
    each = [
        meteor_score([word_tokenize(answer.lower())], word_tokenize(prediction.lower()), wordnet=wordnet)
        for prediction, answer in zip(PREDICTIONS, ANSWERS, strict=True)
    ]
    scores = scored(METEOR)
    assert scores.overall.meteor.value == pytest.approx(np.mean(each), abs=1e-12)
    assert each[-1] > 0.1  # a ship is a boat


@needs_libraries
@pytest.mark.parametrize(("folder", "missing"), [("corpora/wordnet", "WordNet"), ("tokenizers/punkt_tab", "punkt_tab")])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_without_its_data_meteor_is_left_out_with_one_note(
    nltk_data: Path, folder: str, missing: str, is_damaged: bool
) -> None:
    if is_damaged:
        next(path for path in sorted((nltk_data / folder).rglob("*")) if path.is_file()).unlink()
    else:
        (nltk_data / folder).rename(nltk_data / "elsewhere")
    notes: list[str] = []
    assert extra_metrics(notes.append) == (GLEU, ROUGE_L)
    assert notes == [
        f"METEOR is left out, for which nltk lacks {missing}; to have it: python -m nltk.downloader wordnet punkt_tab"
    ]


@pytest.mark.parametrize("library", ["nltk", "rouge_score"])
def test_without_the_libraries_there_is_nothing_to_note(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_scores, "find_spec", lambda name: None if name == library else object())
    assert extra_metrics(pytest.fail) == ()


@pytest.fixture
def fixed_scores(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Scores that need no library: 0.5 for GLEU, 0.25 for ROUGE-L."""
    fixed = {GLEU: lambda prediction, answer: (2.0, 4), ROUGE_L: lambda prediction, answer: (0.25, 1)}
    monkeypatch.setattr(extra_scores, "_SCORES", fixed)
    return fixed


def test_what_was_not_asked_for_is_not_written_and_what_was_comes_back(fixed_scores: dict[str, Any]) -> None:
    plain = score_predictions(PREDICTIONS, ANSWERS, TYPES, 20, 0, CLUSTERS)
    assert set(plain.to_json()["overall"]) == {"count", "clusters", *METRICS}
    assert format_extras({"on": plain}) == ""
    scores = score_predictions(PREDICTIONS, ANSWERS, TYPES, 20, 0, CLUSTERS, [GLEU, ROUGE_L])
    tree = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert set(tree["by_type"]["title"]) == {"count", "clusters", *METRICS, GLEU, ROUGE_L}
    assert tree["overall"]["gleu"]["value"] == 0.5
    assert Scores.from_json(tree) == scores
    # The scores that are always there are the same, and so are their draws.
    assert replace(scores.overall, gleu=None, rouge_l=None) == plain.overall


def test_the_table_has_a_row_for_each_score_that_is_there(fixed_scores: dict[str, Any]) -> None:
    on = score_predictions(PREDICTIONS, ANSWERS, TYPES, 20, 0, CLUSTERS, [ROUGE_L])
    off = score_predictions(PREDICTIONS, ANSWERS, TYPES, 20, 0, CLUSTERS)
    head, row = format_extras({"on": on, "off": off}).splitlines()
    assert head.split() == ["all", "questions", "on", "off"]
    assert row.split()[:2] == ["rouge_l", "0.250"]
    assert row.endswith(" -")
    assert len(format_table({"on": on, "off": off}).splitlines()) == 6  # as ever
