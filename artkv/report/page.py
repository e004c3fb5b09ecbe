"""The page: what it says of a run's evidence, and its text, in which nothing comes from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from artkv import __version__
from artkv.evaluation.extra_scores import GLEU, METEOR, ROUGE_L
from artkv.evaluation.run_roles import CONTROL, MASKS, masked_encoders, masked_folder
from artkv.evaluation.scores import Estimate
from artkv.reading import open_regular
from artkv.report.choices import described_choices
from artkv.report.confusion import described_confusions
from artkv.report.evidence import RETRAINED, Evidence
from artkv.report.facts import model_facts, settings_text, training_facts, versions
from artkv.report.plots import Interval, interval_plot, line_plot

_FOLDER = Path(__file__).parent
# In each page, ahead of all that is long: such a page may be replaced by another report, and no other file may.
MARK = '<meta name="generator" content="artkv report">'
_MARKED_BYTES = 8192
_MEANINGS = {
    "on": "everything as in training",
    "off": "the same weights without the prefix",
    "shuffled": "each picture with the prefix of another painting",
    "on-blank": "a grey picture, so the question alone",
    CONTROL: "another model, trained without a prefix",
    RETRAINED: "another model, trained without this art encoder",
}
# Of each of several art encoders by itself.
_MASKED = {
    "off": "the same weights without this encoder's part",
    "shuffled": "each picture with this encoder's features of another painting",
}
_OTHER_SCORES = {
    "bleu": "BLEU", "bleu_artquest": "BLEU as ArtQuest computes it", "token_f1": "token F1",
    GLEU: "GLEU", ROUGE_L: "ROUGE-L", METEOR: "METEOR",
}  # fmt: skip
_CURVES = (
    ("training", "loss", "Loss on answer tokens", None),
    ("training", "learning_rate", "Learning rate", 0.0),
    ("training", "questions_per_second", "Questions a second", 0.0),
    ("validations", "exact_match", "Exact match on the validation questions", 0.0),
)


@dataclass(frozen=True)
class Note:
    """A sentence about what is missing, and the command that adds it, if one does."""

    text: str
    command: str | None = None


def is_own_page(path: Path) -> bool:
    """Whether `artkv report` wrote the file; `OSError` where it cannot be read, or is none."""
    with open_regular(path) as file:
        return MARK.encode() in file.read(_MARKED_BYTES)


def render(evidence: Evidence, parts: Mapping[str, Any]) -> str:
    """The page's HTML. parts: what its template needs beside the evidence, see page.html.jinja."""
    style, style_hash = style_and_hash()
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    first = evidence.evaluations[0]
    template = page_environment(_FOLDER).get_template("page.html.jinja")
    return template.render(
        style=style,
        style_hash=style_hash,
        script=Markup(script),
        script_hash=_csp_hash(script),
        title=evidence.run_dir.resolve().name,
        lead=_lead(evidence),
        mark=Markup(MARK),
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        sections=_sections(parts),
        has_prefix=evidence.has_prefix,
        split={"val": "validation", "train": "training"}.get(evidence.split, evidence.split),
        questions=f"{first.scores.overall.count:,}",
        paintings=f"{first.scores.overall.clusters:,}",
        columns=evidence.evaluations,
        ablations=_ablations(evidence),
        groups=_groups(evidence),
        score_plot=_score_plot(evidence),
        other_scores=_other_scores(evidence),
        choices=described_choices(evidence),
        confusions=described_confusions(evidence.evaluations),
        curves=_curves(evidence),
        training_facts=training_facts(evidence),
        model_facts=model_facts(evidence),
        versions=versions(evidence),
        settings=settings_text(evidence),
        **parts,
    )


def page_environment(folder: Path) -> Environment:
    """For the templates of a folder: what they are given is escaped, and what they are not given is an error."""
    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def style_and_hash() -> tuple[Markup, str]:
    """The style of artkv's pages, and what a Content-Security-Policy allows it by."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    return Markup(style), _csp_hash(style)


def json_for_script(tree: object) -> Markup:
    """JSON that no text in it can end the script element of, or the string."""
    return htmlsafe_json_dumps(tree, dumps=lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def _csp_hash(text: str) -> str:
    """What a Content-Security-Policy allows an inline style or script by: this page's own, and no other's."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _lead(evidence: Evidence) -> str:
    if not evidence.has_prefix:
        return "BLIP-2 trained to answer questions about paintings without a prefix: a control."
    return (
        "BLIP-2 trained to answer questions about paintings, with keys and values from a frozen art encoder in front "
        "of the picture's own. What do they add?"
    )


def _sections(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    sections = [("verdict", "Verdict"), ("scores", "Scores")]
    sections += [("differences", "Differences")] if parts["differences"] else []
    sections += [("gallery", "Gallery"), ("attention", "Where it looks"), ("training", "Training")]
    return [*sections, ("model", "Model")]


def _ablations(evidence: Evidence) -> list[tuple[str, str]]:
    meanings = _MEANINGS if evidence.has_prefix else {**_MEANINGS, "on": "the picture and the question"}
    masked = {
        masked_folder(encoder, prefix): _MASKED[prefix]
        for encoder in masked_encoders(evidence.config)
        for prefix in MASKS
    }
    return [(evaluation.label, (meanings | masked)[evaluation.name]) for evaluation in evidence.evaluations]


def _groups(evidence: Evidence) -> list[dict[str, Any]]:
    """A row for each question type and one for all."""
    first = evidence.evaluations[0].scores
    names = list(first.by_type)
    rows = [
        (name, first.by_type[name].count, [one.scores.by_type.get(name) for one in evidence.evaluations])
        for name in names
    ]
    rows.append(("all", first.overall.count, [one.scores.overall for one in evidence.evaluations]))
    return [
        {"name": name, "count": f"{count:,}", "exact_match": [scores and scores.exact_match for scores in cells]}
        for name, count, cells in rows
    ]


def _other_scores(evidence: Evidence) -> list[tuple[str, list[Estimate | None]]]:
    """Over all questions, a row for each score that any evaluation has."""
    rows = [
        (name, [getattr(one.scores.overall, metric) for one in evidence.evaluations])
        for metric, name in _OTHER_SCORES.items()
    ]
    return [(name, cells) for name, cells in rows if any(cell is not None for cell in cells)]


def _score_plot(evidence: Evidence) -> Markup:
    groups = [
        (group["name"], [None if one is None else _interval(one) for one in group["exact_match"]])
        for group in _groups(evidence)
    ]
    return interval_plot("Exact match by question type", [one.label for one in evidence.evaluations], groups)


def _interval(one: Estimate) -> Interval:
    return Interval(one.value, one.low, one.high, f"{one.value:.3f}, interval {one.low:.3f} to {one.high:.3f}")


def _curves(evidence: Evidence) -> list[dict[str, Any]]:
    records: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "training": evidence.training, "validations": evidence.validations,
    }  # fmt: skip
    curves = []
    for kind, metric, title, lowest in _CURVES:
        points = [(one["step"], one[metric]) for one in records[kind] if one.get(metric) is not None]
        if points:
            curves.append({"svg": line_plot(title, points, lowest), "caption": title})
    return curves
